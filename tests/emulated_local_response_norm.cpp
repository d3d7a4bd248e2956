// The GPU kernels of local response normalization as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/local_response_norm.cuh, or a copy with an error in it

namespace local_response_norm_cuda {
// The shared memory that the kernels declare.
alignas(16) unsigned char shared_memory[2 * emulation::kSharedBytes];
}  // namespace local_response_norm_cuda

namespace {

using namespace local_response_norm_cuda;

std::string message;

template <typename T, typename A>
void run(
    const void* gradient, const void* x, void* out, const Problem<A>& p, unsigned seed,
    bool only_last) {
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, only_last, arguments...);
  };
  const T* input = static_cast<const T*>(x);
  if (gradient == nullptr) {
    launch_forward(input, p, static_cast<T*>(out), launch);
    return;
  }
  std::vector<A> terms(
      needs_terms(p) ? p.groups * p.channels * p.pixels : 0, std::numeric_limits<A>::quiet_NaN());
  launch_backward(
      static_cast<const T*>(gradient), input, p, terms.data(), static_cast<T*>(out), launch);
}

template <typename A>
Problem<A> problem(
    int64_t groups, int64_t channels, int64_t pixels, bool is_rows, int64_t n, double k,
    double alpha, double beta) {
  return {
      groups,
      channels,
      pixels,
      is_rows,
      std::min(n / 2, channels - 1),
      static_cast<A>(k),
      static_cast<A>(alpha),
      static_cast<A>(beta),
      beta == 0.75};
}

}  // namespace

// `type`: 0 float32, 1 float64, 2 bfloat16, 3 float16. Null where all went well, else what went
// wrong.
extern "C" const char* emulated_local_response_norm(
    int type, const void* gradient, const void* x, void* out, int64_t groups, int64_t channels,
    int64_t pixels, bool is_rows, int64_t n, double k, double alpha, double beta, unsigned seed,
    bool only_last) {
  const auto p = problem<float>(groups, channels, pixels, is_rows, n, k, alpha, beta);
  try {
    if (type == 0) run<float, float>(gradient, x, out, p, seed, only_last);
    if (type == 1) {
      const auto wide = problem<double>(groups, channels, pixels, is_rows, n, k, alpha, beta);
      run<double, double>(gradient, x, out, wide, seed, only_last);
    }
    if (type == 2) run<__nv_bfloat16, float>(gradient, x, out, p, seed, only_last);
    if (type == 3) run<__half, float>(gradient, x, out, p, seed, only_last);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
