// Gradient descent with momentum on the CPU (paper 5): one pass over weight, velocity and gradient.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "instruction_sets.h"
#include "momentum_sgd_host.h"

namespace {

using namespace momentum_sgd;

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

#define REPLICA_LOOPS "momentum_sgd_kernels.inl"
#include "instruction_sets.inl"

template <typename T>
void run(
    const Tensor& weight, const Tensor& velocity, const Tensor& gradient, double learning_rate,
    double momentum, double weight_decay) {
  auto* w = static_cast<T*>(weight.mutable_data_ptr());
  auto* v = static_cast<T*>(velocity.mutable_data_ptr());
  const auto* g = static_cast<const T*>(gradient.const_data_ptr());
  constexpr int64_t kValuesPerThread = 16384;  // less is not worth a thread
  const auto update = REPLICA_IN_USE(T, update<T>);
  torch::stable::parallel_for(0, weight.numel(), kValuesPerThread, [&](int64_t begin, int64_t end) {
    update(w + begin, v + begin, g + begin, end - begin, learning_rate, momentum, weight_decay);
  });
}

void momentum_sgd_all(
    const Tensors& weights, const Tensors& velocities, const Tensors& gradients,
    const Tensor& learning_rates, double momentum, const Tensor& weight_decays) {
  if (weights.empty()) return;
  check(weights, velocities, gradients, learning_rates, weight_decays);
  const auto* rates = static_cast<const double*>(learning_rates.const_data_ptr());
  const auto* decays = static_cast<const double*>(weight_decays.const_data_ptr());
  const auto run_on = weights[0].scalar_type() == ScalarType::Double ? run<double> : run<float>;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (rates[i] == 0) continue;  // frozen
    run_on(weights[i], velocities[i], gradients[i], rates[i], momentum, decays[i]);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(replica, CPU, m) {
  m.impl("momentum_sgd_", TORCH_BOX(&momentum_sgd_all));
}
