// The GPU kernel of augment_batch (paper 2, 4.1). Free of torch: augment_batch.cu gives it to
// PyTorch, and the tests run this file on a CPU (tests/cuda_emulation.h).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "augment_batch_problem.h"
#include "cuda_types.cuh"

namespace augment_batch_cuda {

using namespace cuda_types;
using augment_batch::Place;
using augment_batch::Problem;

// A thread makes one value. Neighbors write neighbors, and read neighbors where channels are last.
// A place outside of the images gives NaN, since nobody waits for its value on the host.
template <typename T>
__global__ void augment_batch_kernel(
    const uint8_t* __restrict__ images, const Place* __restrict__ places,
    const float* __restrict__ mean_image, const float* __restrict__ shifts, Problem p, int64_t size,
    T* __restrict__ out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= p.batch * size) return;
  const int64_t n = at / size, value = at % size;
  const int64_t pixel = p.is_last ? value / 3 : value % (p.side * p.side);
  const int64_t channel = p.is_last ? value % 3 : value / (p.side * p.side);
  const Place place = places[n];
  float result = NAN;
  if (p.holds(place)) {
    const int64_t row = pixel / p.side, column = pixel % p.side;
    const int64_t right = 3 * (place.flip ? p.side - column - 1 : column) + channel;
    const int64_t image = place.index * 3 * p.rows * p.columns + p.first_on_image(place);
    result = static_cast<float>(images[image + 3 * row * p.columns + right]);
    if (mean_image) {
      const int64_t under = p.is_central ? 3 * column + channel : right;
      result = result - mean_image[p.first_on_mean(place) + 3 * row * p.whole_columns + under];
    }
    if (shifts) result = result + shifts[3 * n + channel];
    result = result / p.divisor;
  }
  if constexpr (std::is_same_v<T, uint8_t>) {
    out[at] = static_cast<uint8_t>(result >= 0 ? result : 0.0f);
  } else {
    out[at] = narrow<T>(result);
  }
}

// `mean_image` and `shifts` may be null.
template <typename T, typename Launch>
void launch_augment_batch(
    const uint8_t* images, const Place* places, const float* mean_image, const float* shifts,
    const Problem& p, T* out, const Launch& launch) {
  constexpr int64_t kThreads = 256;
  const int64_t size = 3 * p.side * p.side;
  const int64_t blocks = (p.batch * size + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(
        "augment_batch: expected at most 2147483647 blocks of threads, got " +
        std::to_string(blocks));
  }
  launch(
      augment_batch_kernel<T>, static_cast<unsigned>(blocks), dim3(kThreads), size_t{0}, images,
      places, mean_image, shifts, p, size, out);
}

}  // namespace augment_batch_cuda
