// Gives the kernel of momentum_sgd.cuh to PyTorch, through its stable C++ API.

#include "cuda_launch.cuh"
#include "momentum_sgd.cuh"
#include "momentum_sgd_host.h"

namespace {

using namespace momentum_sgd;

template <typename T>
void run(
    const Tensors& weights, const Tensors& velocities, const Tensors& gradients,
    const Tensor& learning_rates, double momentum, const Tensor& weight_decays) {
  std::vector<T*> w, v;
  std::vector<const T*> g;
  std::vector<int64_t> counts;
  for (size_t i = 0; i < weights.size(); ++i) {
    w.push_back(static_cast<T*>(weights[i].mutable_data_ptr()));
    v.push_back(static_cast<T*>(velocities[i].mutable_data_ptr()));
    g.push_back(static_cast<const T*>(gradients[i].const_data_ptr()));
    counts.push_back(static_cast<int64_t>(weights[i].numel()));
  }
  momentum_sgd_cuda::launch_update(
      w, v, g, counts, static_cast<const double*>(learning_rates.const_data_ptr()), momentum,
      static_cast<const double*>(weight_decays.const_data_ptr()),
      Launch("momentum_sgd_", weights[0]));
}

void momentum_sgd_all(
    const Tensors& weights, const Tensors& velocities, const Tensors& gradients,
    const Tensor& learning_rates, double momentum, const Tensor& weight_decays) {
  if (weights.empty()) return;
  check(weights, velocities, gradients, learning_rates, weight_decays);
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  const auto run_on = weights[0].scalar_type() == ScalarType::Double ? run<double> : run<float>;
  run_on(weights, velocities, gradients, learning_rates, momentum, weight_decays);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(replica, CUDA, m) {
  m.impl("momentum_sgd_", TORCH_BOX(&momentum_sgd_all));
}
