// What the CPU and the CUDA library do alike around the same-map normalization. The checks have
// twins in same_map_norm.py; these serve callers of the registered operators.
#pragma once

#include <algorithm>
#include <cstdint>

#include "same_map_norm_problem.h"
#include "tensor_checks.h"

namespace same_map_norm {

using namespace tensor_checks;

struct Letters {
  static constexpr const char* kName = "same_map_norm";
  int64_t n;
  double k, alpha, beta;
};

inline void check(const Tensor& x, const Letters& letters) {
  STD_TORCH_CHECK(
      x.dim() == 4, "same_map_norm: expected x of (N, C, H, W), got ", x.dim(), " dimensions");
  check_type(letters.kName, x);
  check_window(letters.kName, letters.n);
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

// A library's kernels, as tensor_checks::run calls them.
using Compute =
    void(const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out);

template <Compute* kCompute>
Tensor forward(const Tensor& x, int64_t n, double k, double alpha, double beta) {
  return run<kCompute>(nullptr, x, Letters{n, k, alpha, beta}, nullptr);
}

template <Compute* kCompute>
Tensor backward(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta) {
  return run<kCompute>(&gradient, x, Letters{n, k, alpha, beta}, nullptr);
}

}  // namespace same_map_norm

// In the file of a library: registers its kernels for a dispatch key.
#define REPLICA_REGISTER_SAME_MAP_NORM(KEY, COMPUTE)                                 \
  STABLE_TORCH_LIBRARY_IMPL(replica, KEY, m) {                                       \
    m.impl("same_map_norm", TORCH_BOX(&same_map_norm::forward<&COMPUTE>));           \
    m.impl("same_map_norm_backward", TORCH_BOX(&same_map_norm::backward<&COMPUTE>)); \
  }
