// The GPU kernel of dropout as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/philox_dropout.cuh, or a copy with an error in it

namespace {

unsigned char shared_memory[2 * emulation::kSharedBytes];
std::string message;

}  // namespace

// `type`: 0 float32, 1 float64, 2 bfloat16, 3 float16. Null where all went well.
extern "C" const char* emulated_philox_dropout(
    int type, const void* x, const int64_t* step, const int64_t* rows, int64_t num_rows,
    int64_t units, int64_t first_unit, uint32_t layer, uint32_t key0, uint32_t key1,
    uint64_t threshold, void* out, unsigned seed) {
  const philox_dropout::Problem p{num_rows, units, first_unit, layer, {key0, key1}, threshold};
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, false, arguments...);
  };
  const auto run = [&]<typename T>(T) {
    philox_dropout_cuda::launch_dropout(
        static_cast<const T*>(x), step, rows, p, static_cast<T*>(out), launch);
  };
  try {
    if (type == 0) run(float{});
    if (type == 1) run(double{});
    if (type == 2) run(__nv_bfloat16{});
    if (type == 3) run(__half{});
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
