// What the CPU and the CUDA library do alike around local response normalization. The checks have
// twins in local_response_norm.py; these serve callers of the registered operators.
#pragma once

#include <algorithm>
#include <cstdint>

#include "local_response_norm_problem.h"
#include "tensor_checks.h"

namespace local_response_norm {

using namespace tensor_checks;

struct Parameters {
  static constexpr const char* kName = "local_response_norm";
  int64_t n;
  double k;
  double alpha;
  double beta;
  int64_t towers;
};

inline void check(const Tensor& x, const Parameters& p) {
  STD_TORCH_CHECK(
      x.dim() >= 2, "local_response_norm: expected x of (N, C, ...), got ", x.dim(), " dimensions");
  check_type(p.kName, x);
  check_window(p.kName, p.n);
  STD_TORCH_CHECK(
      p.towers >= 1 && x.size(1) % p.towers == 0,
      "local_response_norm: expected channels divisible by towers, got ", x.size(1),
      " channels and ", p.towers, " towers");
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

// A library's kernels, as tensor_checks::run calls them.
using Compute =
    void(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor& out);

template <Compute* kCompute>
Tensor forward(const Tensor& x, int64_t n, double k, double alpha, double beta, int64_t towers) {
  return run<kCompute>(nullptr, x, Parameters{n, k, alpha, beta, towers}, nullptr);
}

template <Compute* kCompute>
void forward_out(
    const Tensor& x, int64_t n, double k, double alpha, double beta, int64_t towers,
    const Tensor& out) {
  run<kCompute>(nullptr, x, Parameters{n, k, alpha, beta, towers}, &out);
}

template <Compute* kCompute>
Tensor backward(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta,
    int64_t towers) {
  return run<kCompute>(&gradient, x, Parameters{n, k, alpha, beta, towers}, nullptr);
}

template <Compute* kCompute>
void backward_out(
    const Tensor& gradient, const Tensor& x, int64_t n, double k, double alpha, double beta,
    int64_t towers, const Tensor& out) {
  run<kCompute>(&gradient, x, Parameters{n, k, alpha, beta, towers}, &out);
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
