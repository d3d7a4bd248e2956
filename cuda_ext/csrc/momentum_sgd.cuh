// The GPU kernel of gradient descent with momentum (paper 5): all tensors in one launch. Free of
// torch: momentum_sgd.cu gives it to PyTorch, and the tests run this file on a CPU
// (tests/cuda_emulation.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace momentum_sgd_cuda {

constexpr int64_t kThreads = 256;
constexpr int64_t kValuesOfBlock = 4 * kThreads;
constexpr int kMostTensors = 64;  // of one launch: what they need fits among its arguments

// Tensors of one launch; those of tensor i begin at block first_block[i].
template <typename T>
struct Batch {
  T* weights[kMostTensors];
  T* velocities[kMostTensors];
  const T* gradients[kMostTensors];
  int64_t counts[kMostTensors];
  unsigned first_block[kMostTensors + 1];
  int number;
  int first;  // of all tensors, for their rates and decays
};

template <typename T>
__global__ void update_kernel(
    Batch<T> batch, const double* __restrict__ learning_rates, double momentum,
    const double* __restrict__ weight_decays) {
  int i = 0;
  while (i + 1 < batch.number && batch.first_block[i + 1] <= blockIdx.x) ++i;
  const double rate = learning_rates[batch.first + i];
  if (rate == 0) return;  // frozen
  const T keep = static_cast<T>(momentum);
  const T decay = static_cast<T>(weight_decays[batch.first + i] * rate);
  const T step = static_cast<T>(rate);
  const int64_t begin = static_cast<int64_t>(blockIdx.x - batch.first_block[i]) * kValuesOfBlock;
  const int64_t end = min(begin + kValuesOfBlock, batch.counts[i]);
  for (int64_t at = begin + threadIdx.x; at < end; at += blockDim.x) {
    const T weight = batch.weights[i][at];
    const T velocity =
        keep * batch.velocities[i][at] - decay * weight - step * batch.gradients[i][at];
    batch.velocities[i][at] = velocity;
    batch.weights[i][at] = weight + velocity;
  }
}

template <typename T, typename Launch>
void launch_update(
    const std::vector<T*>& weights, const std::vector<T*>& velocities,
    const std::vector<const T*>& gradients, const std::vector<int64_t>& counts,
    const double* learning_rates, double momentum, const double* weight_decays,
    const Launch& launch) {
  for (size_t first = 0; first < weights.size(); first += kMostTensors) {
    Batch<T> batch{};
    batch.first = static_cast<int>(first);
    batch.number = static_cast<int>(std::min<size_t>(kMostTensors, weights.size() - first));
    int64_t blocks = 0;
    for (int i = 0; i < batch.number; ++i) {
      batch.weights[i] = weights[first + i];
      batch.velocities[i] = velocities[first + i];
      batch.gradients[i] = gradients[first + i];
      batch.counts[i] = counts[first + i];
      batch.first_block[i] = static_cast<unsigned>(blocks);
      blocks += (counts[first + i] + kValuesOfBlock - 1) / kValuesOfBlock;
      if (blocks > INT32_MAX) {
        throw std::runtime_error(
            "momentum_sgd_: expected at most 2147483647 blocks of threads, got " +
            std::to_string(blocks));
      }
    }
    batch.first_block[batch.number] = static_cast<unsigned>(blocks);
    if (blocks == 0) continue;
    launch(
        update_kernel<T>, static_cast<unsigned>(blocks), dim3(kThreads), size_t{0}, batch,
        learning_rates, momentum, weight_decays);
  }
}

}  // namespace momentum_sgd_cuda
