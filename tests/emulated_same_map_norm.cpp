// The GPU kernels of the same-map normalization as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/same_map_norm.cuh, or a copy with an error in it

using namespace same_map_norm_cuda;

static unsigned char shared_memory[2 * emulation::kSharedBytes];

extern "C" const char* emulated_same_map_norm(
    int64_t type, const void* gradient, const void* x, void* out, int64_t groups, int64_t channels,
    int64_t rows, int64_t columns, int64_t n, double k, double alpha, double beta, int64_t seed) {
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, false, arguments...);
  };
  const auto run = [&]<typename T, typename A>(T, A) {
    const Problem<A> p{
        groups,
        channels,
        rows,
        columns,
        std::min(n / 2, rows - 1),
        std::min(n / 2, columns - 1),
        static_cast<A>(k),
        static_cast<A>(alpha),
        static_cast<A>(beta),
        beta == 0.75};
    const T* input = static_cast<const T*>(x);
    T* output = static_cast<T*>(out);
    if (gradient == nullptr) return launch_forward(input, p, output, launch);
    std::vector<A> terms(groups * channels * rows * columns, std::numeric_limits<A>::quiet_NaN());
    launch_backward(static_cast<const T*>(gradient), input, p, terms.data(), output, launch);
  };
  return emulation::problem_in([&] { emulation::with_types(type, run); });
}
