// What the CPU and the CUDA library do alike around the update. The checks have twins in
// momentum_sgd.py; these serve callers of the registered operator.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace momentum_sgd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline bool on_one_device(const Tensor& one, const Tensor& other) {
  return one.is_cpu() == other.is_cpu() && one.get_device() == other.get_device();
}

inline void check_alike(const Tensor& weight, const Tensor& other, const char* name) {
  bool alike = other.dim() == weight.dim() && other.scalar_type() == weight.scalar_type() &&
               on_one_device(weight, other);
  for (int64_t i = 0; alike && i < weight.dim(); ++i) {
    alike = other.size(i) == weight.size(i) &&
            (weight.size(i) == 1 || other.stride(i) == weight.stride(i));
  }
  STD_TORCH_CHECK(
      alike, "momentum_sgd_: expected a ", name,
      " of the shape, type, device and strides of the weight, got another");
}

inline void check_numbers(const Tensor& numbers, const Tensors& weights) {
  STD_TORCH_CHECK(
      numbers.scalar_type() == ScalarType::Double && numbers.is_contiguous() &&
          numbers.numel() == weights.size() && on_one_device(numbers, weights[0]),
      "momentum_sgd_: expected one float64 rate and decay of each weight, on its device");
}

inline void check(
    const Tensors& weights, const Tensors& velocities, const Tensors& gradients,
    const Tensor& learning_rates, const Tensor& weight_decays) {
  STD_TORCH_CHECK(
      velocities.size() == weights.size() && gradients.size() == weights.size(),
      "momentum_sgd_: expected a velocity and a gradient of each weight");
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    STD_TORCH_CHECK(
        weight.scalar_type() == weights[0].scalar_type() && on_one_device(weight, weights[0]),
        "momentum_sgd_: expected weights of one type and device");
    check_alike(weight, velocities[i], "velocity");
    check_alike(weight, gradients[i], "gradient");
    int64_t last = 0;
    for (int64_t d = 0; d < weight.dim(); ++d) last += (weight.size(d) - 1) * weight.stride(d);
    STD_TORCH_CHECK(
        weight.numel() == 0 || last + 1 == static_cast<int64_t>(weight.numel()),
        "momentum_sgd_: expected a weight without gaps in memory, got one with gaps");
  }
  check_numbers(learning_rates, weights);
  check_numbers(weight_decays, weights);
  STD_TORCH_CHECK(
      weights[0].scalar_type() == ScalarType::Float ||
          weights[0].scalar_type() == ScalarType::Double,
      "momentum_sgd_: expected float32 or float64, got another type");
}

}  // namespace momentum_sgd
