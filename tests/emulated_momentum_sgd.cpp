// The GPU kernel of the update as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/momentum_sgd.cuh, or a copy with an error in it

namespace {

unsigned char shared_memory[2 * emulation::kSharedBytes];

template <typename T>
int64_t run(
    int64_t number, void** w, void** v, void** g, const int64_t* counts, const double* rates,
    double momentum, const double* decays) {
  std::vector<T*> weights, velocities;
  std::vector<const T*> gradients;
  for (int64_t i = 0; i < number; ++i) {
    weights.push_back(static_cast<T*>(w[i]));
    velocities.push_back(static_cast<T*>(v[i]));
    gradients.push_back(static_cast<const T*>(g[i]));
  }
  int64_t launches = 0;
  momentum_sgd_cuda::launch_update(
      weights, velocities, gradients, std::vector<int64_t>(counts, counts + number), rates,
      momentum, decays, [&](auto... arguments) {
        ++launches;
        emulation::launch(shared_memory, 0, false, arguments...);
      });
  return launches;
}

}  // namespace

// How many launches there were.
extern "C" int64_t emulated_momentum_sgd(
    int64_t is_double, int64_t number, void** w, void** v, void** g, const int64_t* counts,
    const double* rates, double momentum, const double* decays) {
  return is_double ? run<double>(number, w, v, g, counts, rates, momentum, decays)
                   : run<float>(number, w, v, g, counts, rates, momentum, decays);
}
