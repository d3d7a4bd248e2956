// The GPU kernels of local response normalization as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/local_response_norm.cuh, or a copy with an error in it

namespace local_response_norm_cuda {
// The shared memory that the kernels declare.
alignas(16) unsigned char shared_memory[2 * emulation::kSharedBytes];
}  // namespace local_response_norm_cuda

using namespace local_response_norm_cuda;

extern "C" const char* emulated_local_response_norm(
    int64_t type, const void* gradient, const void* x, void* out, int64_t groups, int64_t channels,
    int64_t pixels, int64_t is_rows, int64_t n, double k, double alpha, double beta, int64_t seed,
    int64_t only_last) {
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, only_last, arguments...);
  };
  const auto run = [&]<typename T, typename A>(T, A) {
    const Problem<A> p{
        groups,
        channels,
        pixels,
        is_rows != 0,
        std::min(n / 2, channels - 1),
        static_cast<A>(k),
        static_cast<A>(alpha),
        static_cast<A>(beta),
        beta == 0.75};
    const T* input = static_cast<const T*>(x);
    T* output = static_cast<T*>(out);
    if (gradient == nullptr) return launch_forward(input, p, output, launch);
    std::vector<A> terms(
        needs_terms(p) ? groups * channels * pixels : 0, std::numeric_limits<A>::quiet_NaN());
    launch_backward(static_cast<const T*>(gradient), input, p, terms.data(), output, launch);
  };
  return emulation::problem_in([&] { emulation::with_types(type, run); });
}

extern "C" int64_t emulated_num_vectors_read() { return emulation::num_vectors_read; }

extern "C" int64_t emulated_needs_64_bits(int64_t groups, int64_t channels, int64_t pixels) {
  return needs_64_bits({groups, channels, pixels, true, kReach, 2, 1, 0.75, true});
}
