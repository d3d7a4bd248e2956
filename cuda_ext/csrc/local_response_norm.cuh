// GPU kernels of local response normalization (paper 3.3), and which of them runs when.
//
// Free of torch: local_response_norm.cu gives these kernels to PyTorch, and the tests run this file
// on a CPU (tests/cuda_emulation.h).
//
//   y[c]  = x[c] * base[c]^-beta,   base[c] = k + alpha * sum of x^2 over the window around c
//   dx[c] = g[c] * base[c]^-beta - 2 alpha beta x[c] * sum of t over the window around c,
//   t[j]  = g[j] * x[j] * base[j]^-beta / base[j]
//
// A result is written by one thread, which gathers what it needs in a fixed order: there is no
// atomic addition, so runs agree bit for bit. T is the type in memory, A the type of the sums.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda_types.cuh"
#include "local_response_norm_powers.cuh"
#include "local_response_norm_vectors.cuh"

namespace local_response_norm_cuda {

// What kernels read x and the gradient through, by element; `values + i` begins i elements later,
// `values[i]` is one of them. Pointers serve, or what computes a value on the way. This passes the
// gradient on, or not, where x was `value`.
template <typename T, typename A>
__device__ inline A passed(const T*, A, A result) {
  return result;
}

// Planes of pixels, n = 5. A thread goes down the channels of one pixel of one group, and keeps the
// channels of the window in registers: each value is read once. Threads of a warp have neighboring
// pixels, so their reads are one piece of memory.

// Moves a window by one place.
template <int kSize, typename A>
__device__ inline void push(A (&window)[kSize], A value) {
#pragma unroll
  for (int j = 0; j + 1 < kSize; ++j) window[j] = window[j + 1];
  window[kSize - 1] = value;
}

template <int kSize, typename A>
__device__ inline A sum_of_squares(const A (&window)[kSize]) {
  A sum = window[0] * window[0];
#pragma unroll
  for (int j = 1; j < kSize; ++j) sum += window[j] * window[j];
  return sum;
}

template <typename T, typename A>
__global__ void forward_planes_kernel(const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= p.groups * p.pixels) return;
  const int64_t at = thread / p.pixels * p.channels * p.pixels + thread % p.pixels;
  A window[2 * kReach + 1] = {};
#pragma unroll 4
  for (int64_t c = 0; c < p.channels + kReach; ++c) {
    push(window, c < p.channels ? widen(x[at + c * p.pixels]) : A(0));
    if (c < kReach) continue;
    const A base = p.k + p.alpha * sum_of_squares(window);
    out[at + (c - kReach) * p.pixels] = narrow<T>(window[kReach] * inverse_powers(base, p).power);
  }
}

// The terms of a channel are known kReach channels after its value, the output kReach later.
template <typename T, typename A>
__device__ inline void backward_planes(auto gradient, auto x, const Problem<A>& p, T* out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= p.groups * p.pixels) return;
  const int64_t at = thread / p.pixels * p.channels * p.pixels + thread % p.pixels;
  A values[3 * kReach + 1] = {};  // of channels c - 3 kReach to c
  A terms[2 * kReach + 1] = {};   // of channels c - 3 kReach to c - kReach
  A direct[kReach + 1] = {};      // g * base^-beta of channels c - 2 kReach to c - kReach
  const A factor = 2 * p.alpha * p.beta;
#pragma unroll 2
  for (int64_t c = 0; c < p.channels + 2 * kReach; ++c) {
    push(values, c < p.channels ? widen(x[at + c * p.pixels]) : A(0));
    const int64_t middle = c - kReach;
    A term = 0, straight = 0;
    if (middle >= 0 && middle < p.channels) {
      A sum = 0;
#pragma unroll
      for (int j = kReach; j < 3 * kReach + 1; ++j) sum += values[j] * values[j];
      const auto powers = inverse_powers(p.k + p.alpha * sum, p);
      straight = widen(gradient[at + middle * p.pixels]) * powers.power;
      term = straight * powers.inverse * values[2 * kReach];
    }
    push(terms, term);
    push(direct, straight);
    if (c < 2 * kReach) continue;
    A sum = 0;
#pragma unroll
    for (int j = 0; j < 2 * kReach + 1; ++j) sum += terms[j];
    const A result = direct[0] - factor * values[kReach] * sum;
    out[at + (c - 2 * kReach) * p.pixels] = narrow<T>(passed(x, values[kReach], result));
  }
}

template <typename T, typename A>
__global__ void backward_planes_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  backward_planes(gradient, x, p, out);
}

// Rows of channels, any n. A block does blockDim.y rows; its threads along x read neighboring
// channels. The row with zeros on both sides is in shared memory, where the windows are summed.
template <typename A>
__device__ inline A* shared_values() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return reinterpret_cast<A*>(shared_memory);
}

// A row that fits into shared memory needs no 64 bits to count its channels.
template <typename A>
__device__ inline int width_of(const Problem<A>& p) {
  return static_cast<int>(p.channels + 2 * p.reach);
}

template <typename A>
__device__ inline void read_row(auto row, const Problem<A>& p, bool is_row, A* padded) {
  const int channels = static_cast<int>(p.channels), reach = static_cast<int>(p.reach);
  for (int i = threadIdx.x; i < channels + 2 * reach; i += blockDim.x) {
    const int c = i - reach;
    padded[i] = is_row && c >= 0 && c < channels ? widen(row[c]) : A(0);
  }
}

// Of the window that begins at values[0]; of the paper's n without a loop.
template <typename A>
__device__ inline A window_sum(const A* values, const Problem<A>& p, auto term_of) {
  A sum = 0;
  if (p.reach == kReach) {
#pragma unroll
    for (int j = 0; j < 2 * kReach + 1; ++j) sum += term_of(values[j]);
    return sum;
  }
  for (int j = 0; j <= 2 * static_cast<int>(p.reach); ++j) sum += term_of(values[j]);
  return sum;
}

template <typename A>
__device__ inline A base_in_row(const A* values, const Problem<A>& p) {
  return p.k + p.alpha * window_sum(values, p, [](A value) { return value * value; });
}

template <typename T, typename A>
__global__ void forward_rows_kernel(const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool is_row = row < p.groups * p.pixels;
  A* padded = shared_values<A>() + threadIdx.y * width_of(p);
  read_row(x + row * p.channels, p, is_row, padded);
  __syncthreads();
  if (!is_row) return;
  for (int c = threadIdx.x; c < static_cast<int>(p.channels); c += blockDim.x) {
    const A power = inverse_powers(base_in_row(padded + c, p), p).power;
    out[row * p.channels + c] = narrow<T>(padded[c + p.reach] * power);
  }
}

// In shared memory, for each row: values, terms (both with zeros around them), g * base^-beta.
template <typename T, typename A>
__device__ inline void backward_rows(auto gradient, auto x, const Problem<A>& p, T* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool is_row = row < p.groups * p.pixels;
  const int width = width_of(p), channels = static_cast<int>(p.channels);
  A* values = shared_values<A>() + threadIdx.y * (2 * width + channels);
  A* terms = values + width;
  A* direct = terms + width;
  read_row(x + row * p.channels, p, is_row, values);
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int c = i - static_cast<int>(p.reach);
    A term = 0;
    if (is_row && c >= 0 && c < channels) {
      const auto powers = inverse_powers(base_in_row(values + c, p), p);
      direct[c] = widen(gradient[row * p.channels + c]) * powers.power;
      term = direct[c] * powers.inverse * values[i];
    }
    terms[i] = term;
  }
  __syncthreads();
  if (!is_row) return;
  const A factor = 2 * p.alpha * p.beta;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const A sum = window_sum(terms + c, p, [](A term) { return term; });
    // direct[c] is read by the thread that may not have written it: after the barrier.
    const A value = values[c + p.reach];
    out[row * p.channels + c] = narrow<T>(passed(x, value, direct[c] - factor * value * sum));
  }
}

template <typename T, typename A>
__global__ void backward_rows_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  backward_rows(gradient, x, p, out);
}

// Planes with another n, and rows too wide for shared memory. One thread does one element, and
// reads its window through the caches; threads of a warp have neighboring elements.
struct Place {
  int64_t first;   // of the element's column of channels
  int64_t stride;  // from one channel to the next
  int64_t channel;
};

template <typename A>
__device__ inline Place place_of(int64_t element, const Problem<A>& p) {
  if (p.is_rows) return {element / p.channels * p.channels, 1, element % p.channels};
  const int64_t size = p.channels * p.pixels;
  const int64_t pixel = element % p.pixels;
  return {element / size * size + pixel, p.pixels, element % size / p.pixels};
}

template <typename A>
__device__ inline A base_at(auto x, const Place& place, const Problem<A>& p) {
  const int64_t last = min(p.channels - 1, place.channel + p.reach);
  A sum = 0;
  for (int64_t j = max(int64_t(0), place.channel - p.reach); j <= last; ++j) {
    const A value = widen(x[place.first + j * place.stride]);
    sum += value * value;
  }
  return p.k + p.alpha * sum;
}

template <typename T, typename A>
__global__ void forward_any_kernel(const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.groups * p.channels * p.pixels) return;
  const A base = base_at(x, place_of(i, p), p);
  out[i] = narrow<T>(widen(x[i]) * inverse_powers(base, p).power);
}

template <typename A>
__device__ inline void terms_any(auto gradient, auto x, const Problem<A>& p, A* terms) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.groups * p.channels * p.pixels) return;
  const auto powers = inverse_powers(base_at(x, place_of(i, p), p), p);
  terms[i] = widen(gradient[i]) * powers.power * powers.inverse * widen(x[i]);
}

template <typename T, typename A>
__global__ void terms_any_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Problem<A> p, A* __restrict__ terms) {
  terms_any(gradient, x, p, terms);
}

template <typename T, typename A>
__device__ inline void backward_any(
    auto gradient, auto x, const A* terms, const Problem<A>& p, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.groups * p.channels * p.pixels) return;
  const Place place = place_of(i, p);
  const int64_t last = min(p.channels - 1, place.channel + p.reach);
  A sum = 0;
  for (int64_t j = max(int64_t(0), place.channel - p.reach); j <= last; ++j) {
    sum += terms[place.first + j * place.stride];
  }
  const A direct = widen(gradient[i]) * inverse_powers(base_at(x, place, p), p).power;
  const A value = widen(x[i]);
  out[i] = narrow<T>(passed(x, value, direct - 2 * p.alpha * p.beta * value * sum));
}

template <typename T, typename A>
__global__ void backward_any_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, const A* __restrict__ terms,
    Problem<A> p, T* __restrict__ out) {
  backward_any(gradient, x, terms, p, out);
}

// Host code: which kernel runs, with how many threads. `launch(kernel, grid, block, shared bytes,
// arguments...)` starts it.
constexpr int64_t kThreads = 256;
constexpr int64_t kThreadsAlongChannels = 16;
constexpr int64_t kSharedBytes = 48 * 1024;  // what every device gives a block unasked

inline unsigned blocks_for(int64_t pieces, int64_t pieces_per_block) {
  const int64_t blocks = (pieces + pieces_per_block - 1) / pieces_per_block;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(
        "local_response_norm: expected at most 2147483647 blocks of threads, got " +
        std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

// Number of rows in a block, 0 where not even one fits into shared memory.
inline int64_t rows_in_block(int64_t bytes_per_row) {
  return std::min(kThreads / kThreadsAlongChannels, kSharedBytes / bytes_per_row);
}

template <typename T, typename A, typename Launch>
void launch_forward(const T* x, const Problem<A>& p, T* out, const Launch& launch) {
  if constexpr (std::is_same_v<A, float>) {
    if (is_in_vectors<T>(p, {x, out})) {
      launch(
          needs_64_bits(p) ? forward_vectors_kernel<T, int64_t>
                           : forward_vectors_kernel<T, int32_t>,
          blocks_for(p.groups * p.pixels * p.channels, kThreads * kLanes<T>), dim3(kThreads),
          size_t(0), x, p, out);
      return;
    }
  }
  const int64_t columns = p.groups * p.pixels;
  if (!p.is_rows && p.reach == kReach) {
    launch(
        forward_planes_kernel<T, A>, blocks_for(columns, kThreads), dim3(kThreads), size_t(0), x, p,
        out);
    return;
  }
  const int64_t bytes = (p.channels + 2 * p.reach) * static_cast<int64_t>(sizeof(A));
  const int64_t rows = p.is_rows ? rows_in_block(bytes) : 0;
  if (rows > 0) {
    launch(
        forward_rows_kernel<T, A>, blocks_for(columns, rows), dim3(kThreadsAlongChannels, rows),
        static_cast<size_t>(rows * bytes), x, p, out);
    return;
  }
  launch(
      forward_any_kernel<T, A>, blocks_for(columns * p.channels, kThreads), dim3(kThreads),
      size_t(0), x, p, out);
}

// Whether launch_backward may need memory for as many values of type A as x has.
template <typename A>
bool needs_terms(const Problem<A>& p) {
  const int64_t bytes = (3 * p.channels + 4 * p.reach) * static_cast<int64_t>(sizeof(A));
  return p.is_rows ? rows_in_block(bytes) == 0 : p.reach != kReach;
}

template <typename T, typename A, typename Launch>
void launch_backward(
    const T* gradient, const T* x, const Problem<A>& p, A* terms, T* out, const Launch& launch) {
  if constexpr (std::is_same_v<A, float>) {
    if (is_in_vectors<T>(p, {gradient, x, out})) {
      launch(
          needs_64_bits(p) ? backward_vectors_kernel<T, int64_t>
                           : backward_vectors_kernel<T, int32_t>,
          blocks_for(p.groups * p.pixels * p.channels, kThreads * kLanes<T>), dim3(kThreads),
          size_t(0), gradient, x, p, out);
      return;
    }
  }
  const int64_t columns = p.groups * p.pixels;
  if (needs_terms(p)) {
    const unsigned blocks = blocks_for(columns * p.channels, kThreads);
    launch(terms_any_kernel<T, A>, blocks, dim3(kThreads), size_t(0), gradient, x, p, terms);
    launch(
        backward_any_kernel<T, A>, blocks, dim3(kThreads), size_t(0), gradient, x,
        static_cast<const A*>(terms), p, out);
    return;
  }
  if (!p.is_rows) {
    launch(
        backward_planes_kernel<T, A>, blocks_for(columns, kThreads), dim3(kThreads), size_t(0),
        gradient, x, p, out);
    return;
  }
  const int64_t bytes = (3 * p.channels + 4 * p.reach) * static_cast<int64_t>(sizeof(A));
  const int64_t rows = rows_in_block(bytes);
  launch(
      backward_rows_kernel<T, A>, blocks_for(columns, rows), dim3(kThreadsAlongChannels, rows),
      static_cast<size_t>(rows * bytes), gradient, x, p, out);
}

}  // namespace local_response_norm_cuda
