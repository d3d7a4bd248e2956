// What the CPU and the CUDA library do alike around the same-map normalization. The checks have
// twins in same_map_norm.py; these serve callers of the registered operators.
#pragma once

#include "local_response_norm_host.h"
#include "same_map_norm_problem.h"

namespace same_map_norm {

using local_response_norm::format_of;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Letters {
  int64_t n;
  double k, alpha, beta;
};

inline void check(const Tensor& x, const Letters& letters) {
  STD_TORCH_CHECK(
      x.dim() == 4, "same_map_norm: expected x of (N, C, H, W), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double ||
          x.scalar_type() == ScalarType::BFloat16 || x.scalar_type() == ScalarType::Half,
      "same_map_norm: expected float32, float64, bfloat16 or float16, got another type");
  STD_TORCH_CHECK(
      letters.n >= 1 && letters.n % 2 == 1, "same_map_norm: expected an odd n >= 1, got ",
      letters.n);
}

inline void check_alike(const Tensor& x, const Tensor& gradient) {
  bool alike = gradient.dim() == 4 && gradient.scalar_type() == x.scalar_type() &&
               gradient.is_cpu() == x.is_cpu() && gradient.get_device() == x.get_device();
  for (int64_t i = 0; alike && i < 4; ++i) alike = gradient.size(i) == x.size(i);
  STD_TORCH_CHECK(
      alike, "same_map_norm: expected a gradient of the shape, type and device of x, got another");
}

// The problem of a tensor that is dense and has elements.
template <typename A>
Problem<A> problem_of(const Tensor& x, const Letters& letters) {
  const bool is_last = format_of(x) != MemoryFormat::Contiguous;
  return {
      is_last ? x.size(0) : x.size(0) * x.size(1),
      is_last ? x.size(1) : 1,
      x.size(2),
      x.size(3),
      std::min(letters.n / 2, x.size(2) - 1),
      std::min(letters.n / 2, x.size(3) - 1),
      static_cast<A>(letters.k),
      static_cast<A>(letters.alpha),
      static_cast<A>(letters.beta),
      letters.beta == 0.75};
}

// A library's kernels: `gradient` is null for the forward; all tensors are dense, of one format,
// and have elements.
using Compute =
    void(const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out);

template <Compute* kCompute>
Tensor run(const Tensor* gradient, const Tensor& x, const Letters& letters) {
  check(x, letters);
  if (gradient) check_alike(x, *gradient);
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor dense_gradient =
      gradient ? torch::stable::contiguous(*gradient, format_of(x)) : dense;
  const Tensor out = torch::stable::empty_like(dense);
  if (dense.numel() > 0) kCompute(gradient ? &dense_gradient : nullptr, dense, letters, out);
  return out;
}

template <Compute* kCompute>
Tensor forward(const Tensor& x, int64_t n, double k, double alpha, double beta) {
  return run<kCompute>(nullptr, x, {n, k, alpha, beta});
}

template <Compute* kCompute>
Tensor backward(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta) {
  return run<kCompute>(&gradient, x, {n, k, alpha, beta});
}

}  // namespace same_map_norm

// In the file of a library: registers its kernels for a dispatch key.
#define REPLICA_REGISTER_SAME_MAP_NORM(KEY, COMPUTE)                                 \
  STABLE_TORCH_LIBRARY_IMPL(replica, KEY, m) {                                       \
    m.impl("same_map_norm", TORCH_BOX(&same_map_norm::forward<&COMPUTE>));           \
    m.impl("same_map_norm_backward", TORCH_BOX(&same_map_norm::backward<&COMPUTE>)); \
  }
