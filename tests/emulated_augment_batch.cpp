// The GPU kernel of augment_batch as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/augment_batch.cuh, or a copy with an error in it

namespace {

unsigned char shared_memory[2 * emulation::kSharedBytes];
std::string message;

}  // namespace

// `type`: 0 float32, 1 bfloat16, 2 uint8. `sizes`: batch, side, images, rows, columns, rows and
// columns of what places lie on. Null where all went well.
extern "C" const char* emulated_augment_batch(
    int type, const uint8_t* images, const int64_t* places, const float* mean_image,
    const float* shifts, const int64_t* sizes, bool is_last, bool is_central, float divisor,
    void* out, unsigned seed) {
  const bool is_cut = sizes[3] != sizes[5] || sizes[4] != sizes[6];
  const augment_batch::Problem p{sizes[0], sizes[1], sizes[2], sizes[3],   sizes[4], sizes[5],
                                 sizes[6], is_cut,   is_last,  is_central, divisor};
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, false, arguments...);
  };
  const auto run = [&]<typename T>(T) {
    augment_batch_cuda::launch_augment_batch(
        images, reinterpret_cast<const augment_batch::Place*>(places), mean_image, shifts, p,
        static_cast<T*>(out), launch);
  };
  try {
    if (type == 0) run(float{});
    if (type == 1) run(__nv_bfloat16{});
    if (type == 2) run(uint8_t{});
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
