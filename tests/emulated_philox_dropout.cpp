// The GPU kernel of dropout as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/philox_dropout.cuh, or a copy with an error in it

static unsigned char shared_memory[2 * emulation::kSharedBytes];

extern "C" const char* emulated_philox_dropout(
    int64_t type, const void* x, const int64_t* step, const int64_t* rows, int64_t num_rows,
    int64_t units, int64_t first_unit, int64_t layer, int64_t key0, int64_t key1, int64_t threshold,
    void* out, int64_t seed) {
  const auto narrow = [](int64_t value) { return static_cast<uint32_t>(value); };
  const philox_dropout::Problem p{
      num_rows,
      units,
      first_unit,
      narrow(layer),
      {narrow(key0), narrow(key1)},
      static_cast<uint64_t>(threshold)};
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, false, arguments...);
  };
  const auto run = [&]<typename T, typename A>(T, A) {
    philox_dropout_cuda::launch_dropout(
        static_cast<const T*>(x), step, rows, p, static_cast<T*>(out), launch);
  };
  return emulation::problem_in([&] { emulation::with_types(type, run); });
}
