// What the CPU and the CUDA library do alike around their kernels: checks, dense tensors, results.
// The checks have twins in local_response_norm.py; these serve callers of the registered operators.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "local_response_norm_problem.h"

namespace local_response_norm {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Parameters {
  int64_t n;
  double k;
  double alpha;
  double beta;
  int64_t towers;
};

// Channels last is kept; everything else becomes or stays NCHW. The twin of `_memory_format` in
// local_response_norm.py.
inline MemoryFormat format_of(const Tensor& x) {
  const bool is_last = (x.dim() == 4 || x.dim() == 5) && x.stride(1) == 1 && x.size(1) > 1;
  if (!is_last) return MemoryFormat::Contiguous;
  return x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

inline void check(const Tensor& x, const Parameters& p) {
  STD_TORCH_CHECK(
      x.dim() >= 2, "local_response_norm: expected x of (N, C, ...), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double ||
          x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half,
      "local_response_norm: expected float32, float64, bfloat16 or float16, got another type");
  STD_TORCH_CHECK(
      p.n >= 1 && p.n % 2 == 1, "local_response_norm: expected an odd n >= 1, got ", p.n);
  STD_TORCH_CHECK(
      p.towers >= 1 && x.size(1) % p.towers == 0,
      "local_response_norm: expected channels divisible by towers, got ", x.size(1),
      " channels and ", p.towers, " towers");
}

inline void check_alike(const Tensor& x, const Tensor& other, const char* name) {
  bool alike = other.dim() == x.dim() && other.scalar_type() == x.scalar_type() &&
               other.is_cpu() == x.is_cpu() && other.get_device() == x.get_device();
  for (int64_t i = 0; alike && i < x.dim(); ++i) alike = other.size(i) == x.size(i);
  STD_TORCH_CHECK(
      alike, "local_response_norm: expected ", name,
      " of the shape, type and device of x, got another");
}

inline void check_apart(const Tensor& input, const Tensor& out) {
  const auto* first = static_cast<const char*>(input.const_data_ptr());
  const auto* other = static_cast<const char*>(out.const_data_ptr());
  const int64_t bytes = static_cast<int64_t>(out.numel() * out.element_size());
  STD_TORCH_CHECK(
      bytes == 0 || first + bytes <= other || other + bytes <= first,
      "local_response_norm: expected an out that shares no memory with the inputs, got one that "
      "does");
}

// `dense` is x without gaps.
inline void check_output(const Tensor& dense, const Tensor& out) {
  check_alike(dense, out, "out");
  for (int64_t i = 0; i < dense.dim(); ++i) {
    STD_TORCH_CHECK(
        dense.size(i) == 1 || dense.numel() == 0 || out.stride(i) == dense.stride(i),
        "local_response_norm: expected out without gaps in the memory format of x, got stride ",
        out.stride(i), " in dimension ", i);
  }
  check_apart(dense, out);
}

// The problem of a tensor that is dense and has elements.
template <typename A>
Problem<A> problem_of(const Tensor& x, const Parameters& p) {
  const int64_t channels = x.size(1) / p.towers;
  const int64_t pixels = x.numel() / (x.size(0) * x.size(1));
  const bool is_rows = format_of(x) != MemoryFormat::Contiguous || pixels == 1;
  return {
      x.size(0) * p.towers,
      channels,
      pixels,
      is_rows,
      std::min(p.n / 2, channels - 1),
      static_cast<A>(p.k),
      static_cast<A>(p.alpha),
      static_cast<A>(p.beta),
      p.beta == 0.75};
}

// A library's kernels: `gradient` is null for the forward; all tensors are dense, of one format,
// and have elements.
using Compute =
    void(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor& out);

// Into `given`, or where that is null into a new tensor.
template <Compute* kCompute>
Tensor run(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor* given) {
  check(x, p);
  if (gradient) check_alike(x, *gradient, "a gradient");
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor dense_gradient =
      gradient ? torch::stable::contiguous(*gradient, format_of(x)) : dense;
  if (given) {
    check_output(dense, *given);
    check_apart(dense_gradient, *given);
  }
  const Tensor out = given ? *given : torch::stable::empty_like(dense);
  if (dense.numel() > 0) kCompute(gradient ? &dense_gradient : nullptr, dense, p, out);
  return out;
}

template <Compute* kCompute>
Tensor forward(const Tensor& x, int64_t n, double k, double alpha, double beta, int64_t towers) {
  return run<kCompute>(nullptr, x, {n, k, alpha, beta, towers}, nullptr);
}

template <Compute* kCompute>
void forward_out(
    const Tensor& x, int64_t n, double k, double alpha, double beta, int64_t towers,
    const Tensor& out) {
  run<kCompute>(nullptr, x, {n, k, alpha, beta, towers}, &out);
}

template <Compute* kCompute>
Tensor backward(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta,
    int64_t towers) {
  return run<kCompute>(&gradient, x, {n, k, alpha, beta, towers}, nullptr);
}

template <Compute* kCompute>
void backward_out(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta,
    int64_t towers, const Tensor& out) {
  run<kCompute>(&gradient, x, {n, k, alpha, beta, towers}, &out);
}

}  // namespace local_response_norm

// In the file of a library: registers its kernels for a dispatch key.
#define REPLICA_REGISTER_LOCAL_RESPONSE_NORM(KEY, COMPUTE)                          \
  STABLE_TORCH_LIBRARY_IMPL(replica, KEY, m) {                                      \
    using namespace local_response_norm;                                            \
    m.impl("local_response_norm", TORCH_BOX(&forward<&COMPUTE>));                   \
    m.impl("local_response_norm_out", TORCH_BOX(&forward_out<&COMPUTE>));           \
    m.impl("local_response_norm_backward", TORCH_BOX(&backward<&COMPUTE>));         \
    m.impl("local_response_norm_backward_out", TORCH_BOX(&backward_out<&COMPUTE>)); \
  }

// For what a library says that it was built for.
#define REPLICA_TEXT_OF(...) #__VA_ARGS__
#define REPLICA_TEXT(...) REPLICA_TEXT_OF(__VA_ARGS__)
