// Gradient descent with momentum on the CPU (paper 5): one pass over weight, velocity and gradient.
//
// The schema and the checks are in momentum_sgd.py; those here serve callers of the registered
// operator.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Waits for memory at any width of vectors, so one version serves every processor.
template <typename T>
void update(
    T* __restrict weight, T* __restrict velocity, const T* __restrict gradient, int64_t count,
    double learning_rate, double momentum, double weight_decay) {
  const T keep = static_cast<T>(momentum);
  const T decay = static_cast<T>(weight_decay * learning_rate);
  const T rate = static_cast<T>(learning_rate);
  for (int64_t i = 0; i < count; ++i) {
    const T v = keep * velocity[i] - decay * weight[i] - rate * gradient[i];
    velocity[i] = v;
    weight[i] += v;
  }
}

template <typename T>
void run(
    const Tensor& weight, const Tensor& velocity, const Tensor& gradient, double learning_rate,
    double momentum, double weight_decay) {
  auto* w = static_cast<T*>(weight.mutable_data_ptr());
  auto* v = static_cast<T*>(velocity.mutable_data_ptr());
  const auto* g = static_cast<const T*>(gradient.const_data_ptr());
  constexpr int64_t kValuesPerThread = 16384;  // less is not worth a thread
  torch::stable::parallel_for(0, weight.numel(), kValuesPerThread, [&](int64_t begin, int64_t end) {
    update(w + begin, v + begin, g + begin, end - begin, learning_rate, momentum, weight_decay);
  });
}

void check_alike(const Tensor& weight, const Tensor& other, const char* name) {
  bool alike = other.dim() == weight.dim() && other.scalar_type() == weight.scalar_type();
  for (int64_t i = 0; alike && i < weight.dim(); ++i) {
    alike = other.size(i) == weight.size(i) &&
            (weight.size(i) == 1 || other.stride(i) == weight.stride(i));
  }
  STD_TORCH_CHECK(
      alike, "momentum_sgd_: expected a ", name,
      " of the shape, type and strides of the weight, got another");
}

void momentum_sgd(
    const Tensor& weight, const Tensor& velocity, const Tensor& gradient, double learning_rate,
    double momentum, double weight_decay) {
  check_alike(weight, velocity, "velocity");
  check_alike(weight, gradient, "gradient");
  if (weight.numel() == 0) return;
  int64_t last = 0;
  for (int64_t i = 0; i < weight.dim(); ++i) last += (weight.size(i) - 1) * weight.stride(i);
  STD_TORCH_CHECK(
      last + 1 == static_cast<int64_t>(weight.numel()),
      "momentum_sgd_: expected a weight without gaps in memory, got one with gaps");
  if (weight.scalar_type() == ScalarType::Double) {
    return run<double>(weight, velocity, gradient, learning_rate, momentum, weight_decay);
  }
  STD_TORCH_CHECK(
      weight.scalar_type() == ScalarType::Float,
      "momentum_sgd_: expected float32 or float64, got another type");
  run<float>(weight, velocity, gradient, learning_rate, momentum, weight_decay);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(replica, CPU, m) { m.impl("momentum_sgd_", TORCH_BOX(&momentum_sgd)); }
