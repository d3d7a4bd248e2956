// The GPU kernel of dropout with stateless draws (paper 4.2). Free of torch: philox_dropout.cu
// gives it to PyTorch, and the tests run this file on a CPU (tests/cuda_emulation.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda_types.cuh"
#include "philox_dropout_problem.h"

namespace philox_dropout_cuda {

using namespace cuda_types;
using philox_dropout::Problem;

// A thread draws the four words of one counter, and does the units of x that are theirs.
template <typename T>
__global__ void dropout_kernel(
    const T* __restrict__ x, const int64_t* __restrict__ step, const int64_t* __restrict__ rows,
    Problem p, int64_t counters, T* __restrict__ out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= p.rows * counters) return;
  const int64_t row = thread / counters;
  const int64_t counter = p.first_unit / 4 + thread % counters;
  const philox::Words words = philox::draw(
      p.key, {static_cast<uint32_t>(*step), p.layer, static_cast<uint32_t>(rows[row]),
              static_cast<uint32_t>(counter)});
  for (int j = 0; j < 4; ++j) {
    const int64_t unit = 4 * counter + j - p.first_unit;
    if (unit < 0 || unit >= p.units) continue;
    const T value = x[row * p.units + unit];
    const bool stays = words.at[j] < p.threshold;
    out[row * p.units + unit] = stays ? value : narrow<T>(widen(value) * 0);
  }
}

template <typename T, typename Launch>
void launch_dropout(
    const T* x, const int64_t* step, const int64_t* rows, const Problem& p, T* out,
    const Launch& launch) {
  constexpr int64_t kThreads = 256;
  const int64_t counters = (p.first_unit + p.units + 3) / 4 - p.first_unit / 4;
  const int64_t blocks = (p.rows * counters + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(
        "philox_dropout: expected at most 2147483647 blocks of threads, got " +
        std::to_string(blocks));
  }
  launch(
      dropout_kernel<T>, static_cast<unsigned>(blocks), dim3(kThreads), size_t{0}, x, step, rows, p,
      counters, out);
}

}  // namespace philox_dropout_cuda
