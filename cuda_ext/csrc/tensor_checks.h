// What operators of one tensor (with a gradient of its shape) do alike around their kernels, on the
// CPU and on the GPU: checks, dense tensors, results. The checks have twins in Python; these serve
// callers of the registered operators.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace tensor_checks {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Channels last is kept; everything else becomes or stays NCHW. The twin of `_memory_format` in
// local_response_norm.py.
inline MemoryFormat format_of(const Tensor& x) {
  const bool is_last = (x.dim() == 4 || x.dim() == 5) && x.stride(1) == 1 && x.size(1) > 1;
  if (!is_last) return MemoryFormat::Contiguous;
  return x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

inline void check_type(const char* operator_name, const Tensor& x) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double ||
          x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half,
      operator_name, ": expected float32, float64, bfloat16 or float16, got another type");
}

inline void check_window(const char* operator_name, int64_t n) {
  STD_TORCH_CHECK(n >= 1 && n % 2 == 1, operator_name, ": expected an odd n >= 1, got ", n);
}

inline void check_alike(
    const char* operator_name, const Tensor& x, const Tensor& other, const char* name) {
  bool alike = other.dim() == x.dim() && other.scalar_type() == x.scalar_type() &&
               other.is_cpu() == x.is_cpu() && other.get_device() == x.get_device();
  for (int64_t i = 0; alike && i < x.dim(); ++i) alike = other.size(i) == x.size(i);
  STD_TORCH_CHECK(
      alike, operator_name, ": expected ", name,
      " of the shape, type and device of x, got another");
}

inline void check_apart(const char* operator_name, const Tensor& input, const Tensor& out) {
  const auto* first = static_cast<const char*>(input.const_data_ptr());
  const auto* other = static_cast<const char*>(out.const_data_ptr());
  const int64_t bytes = static_cast<int64_t>(out.numel() * out.element_size());
  STD_TORCH_CHECK(
      bytes == 0 || first + bytes <= other || other + bytes <= first, operator_name,
      ": expected an out that shares no memory with the inputs, got one that does");
}

// `dense` is x without gaps.
inline void check_output(const char* operator_name, const Tensor& dense, const Tensor& out) {
  check_alike(operator_name, dense, out, "out");
  for (int64_t i = 0; i < dense.dim(); ++i) {
    STD_TORCH_CHECK(
        dense.size(i) == 1 || dense.numel() == 0 || out.stride(i) == dense.stride(i), operator_name,
        ": expected out without gaps in the memory format of x, got stride ", out.stride(i),
        " in dimension ", i);
  }
  check_apart(operator_name, dense, out);
}

// Calls kCompute, a library's kernels: `gradient` is null for the forward; all tensors are dense,
// of one format, and have elements. `Parameters` of an operator have its kName and a check(x, p).
// Into `given`, or where that is null into a new tensor.
template <auto* kCompute, typename Parameters>
Tensor run(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor* given) {
  const char* name = Parameters::kName;
  check(x, p);
  if (gradient) check_alike(name, x, *gradient, "a gradient");
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor dense_gradient =
      gradient ? torch::stable::contiguous(*gradient, format_of(x)) : dense;
  if (given) {
    check_output(name, dense, *given);
    check_apart(name, dense_gradient, *given);
  }
  const Tensor out = given ? *given : torch::stable::empty_like(dense);
  if (dense.numel() > 0) kCompute(gradient ? &dense_gradient : nullptr, dense, p, out);
  return out;
}

}  // namespace tensor_checks
