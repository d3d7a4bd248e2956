// GPU kernels of local response normalization for the network's default layout: rows of channels in
// whole vectors, n = 5, beta = 3/4.
//
// A thread does the channels of one vector of 16 bytes. It reads the channels next to them from the
// neighboring vectors, which other threads of the warp bring into the first-level cache, and
// backward computes the terms of those channels, too: no thread waits for another. Threads of a
// warp have neighboring vectors. Sums are in the order of the other kernels; on a GPU the last bits
// may differ from theirs, as the compiler joins other products with their sums.
//
// Registers of a thread (nvcc 13.0, sm_80 and sm_90): forward 23 in float32 and 32 in 16 bits,
// backward 32 to 40 and 48, nothing spilled. Not measured.
//
// Index counts elements. Those of the last threads of a block may lie beyond the tensor, but not
// beyond 2^31 - 1 where its size is not: a block has a divisor of 2^31 elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "cuda_vectors.cuh"
#include "local_response_norm_powers.cuh"

namespace local_response_norm_cuda {

using namespace cuda_types;

template <typename Index>
__device__ inline Index first_of_vector(int lanes) {
  const auto block = static_cast<Index>(blockIdx.x), size = static_cast<Index>(blockDim.x);
  return (block * size + static_cast<Index>(threadIdx.x)) * static_cast<Index>(lanes);
}

// A vector of a row with kHalo channels on both sides, zeros where there is none.
template <int kHalo, typename T>
__device__ inline void read_around(
    const T* vector, bool begins_row, bool ends_row, float (&values)[kLanes<T> + 2 * kHalo]) {
  static_assert(kHalo <= kLanes<T>);
#pragma unroll
  for (int j = 0; j < kHalo; ++j) values[j] = values[kLanes<T> + kHalo + j] = 0;
  if (!begins_row) read_vector<kHalo>(vector - kHalo, values);
  read_vector<kLanes<T>>(vector, values + kHalo);
  if (!ends_row) read_vector<kHalo>(vector + kLanes<T>, values + kLanes<T> + kHalo);
}

__device__ inline float base_of_window(const float* values, const Problem<float>& p) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 2 * kReach + 1; ++j) sum += values[j] * values[j];
  return p.k + p.alpha * sum;
}

template <typename T, typename Index>
__global__ void forward_vectors_kernel(
    const T* __restrict__ x, Problem<float> p, T* __restrict__ out) {
  const auto channels = static_cast<Index>(p.channels);
  const Index first = first_of_vector<Index>(kLanes<T>);
  if (first >= p.groups * p.pixels * p.channels) return;
  const Index channel = first % channels;
  float values[kLanes<T> + 2 * kReach];
  read_around<kReach>(x + first, channel == 0, channel + kLanes<T> == channels, values);
  float results[kLanes<T>];
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    const float power = inverse_three_quarters(base_of_window(values + i, p)).power;
    results[i] = values[i + kReach] * power;
  }
  write_vector<T>(results, out + first);
}

// Beyond the last channel a term is zero, or NaN where a channel so near is NaN that the outputs
// are, too.
template <typename T, typename Index>
__global__ void backward_vectors_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Problem<float> p,
    T* __restrict__ out) {
  const auto channels = static_cast<Index>(p.channels);
  const Index first = first_of_vector<Index>(kLanes<T>);
  if (first >= p.groups * p.pixels * p.channels) return;
  const Index channel = first % channels;
  const bool begins_row = channel == 0, ends_row = channel + kLanes<T> == channels;
  float values[kLanes<T> + 4 * kReach], terms[kLanes<T> + 2 * kReach], direct[kLanes<T>];
  read_around<2 * kReach>(x + first, begins_row, ends_row, values);
  read_around<kReach>(gradient + first, begins_row, ends_row, terms);  // gradients at first
#pragma unroll
  for (int i = 0; i < kLanes<T> + 2 * kReach; ++i) {
    const auto powers = inverse_three_quarters(base_of_window(values + i, p));
    const float straight = terms[i] * powers.power;
    if (i >= kReach && i < kLanes<T> + kReach) direct[i - kReach] = straight;
    terms[i] = straight * powers.inverse * values[i + kReach];
  }
  const float factor = 2 * p.alpha * p.beta;
  float results[kLanes<T>];
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 2 * kReach + 1; ++j) sum += terms[i + j];
    results[i] = direct[i] - factor * values[i + 2 * kReach] * sum;
  }
  write_vector<T>(results, out + first);
}

// Host code.

inline bool needs_64_bits(const Problem<float>& p) {
  return p.groups * p.pixels * p.channels > INT32_MAX;
}

// Whether these kernels serve: each row, and so each vector, begins at a multiple of 16 bytes.
template <typename T>
bool is_in_vectors(const Problem<float>& p, std::initializer_list<const T*> tensors) {
  const auto is_aligned = [](const T* tensor) {
    return reinterpret_cast<uintptr_t>(tensor) % kVectorBytes == 0;
  };
  return p.is_rows && p.reach == kReach && p.three_quarters && p.channels % kLanes<T> == 0 &&
         std::all_of(tensors.begin(), tensors.end(), is_aligned);
}

}  // namespace local_response_norm_cuda
