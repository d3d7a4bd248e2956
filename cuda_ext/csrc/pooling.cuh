// GPU kernels of max pooling, by itself and in one pass with ReLU and local response normalization
// (paper 3.3, 3.4). Free of torch: pooling.cu gives them to PyTorch, and the tests run this file on
// a CPU (tests/cuda_emulation.h).
//
// A result is written by one thread, which gathers what it needs in a fixed order: runs agree bit
// for bit. Values that several threads read come through the caches; threads of a warp have
// neighboring elements. T is the type in memory, A the type of comparisons and sums.
#pragma once

#include "local_response_norm.cuh"
#include "pooling_problem.h"

namespace pooling_cuda {

using namespace cuda_types;
using local_response_norm::Problem;
using local_response_norm_cuda::blocks_for;
using local_response_norm_cuda::kThreads;
using pooling::Range;
using pooling::Windows;

// Where an element of x, or of the result, lies: in a group (image or map), at a pixel, a channel.
struct Element {
  int64_t group, row, column, channel;
};
__device__ inline Element element_of(int64_t i, int64_t columns, int64_t pixels, int64_t channels) {
  const int64_t pixel = i / channels % pixels;
  return {i / channels / pixels, pixel / columns, pixel % columns, i % channels};
}

// The element of x in the corner of a window.
__device__ inline int64_t corner_of(const Element& at, const Windows& w) {
  const int64_t pixel = at.row * w.stride * w.columns + at.column * w.stride;
  return (at.group * w.pixels() + pixel) * w.channels + at.channel;
}

// The maximum of a window: the first of equal ones, and NaN (of several the last). `value_at` says
// what stands in an element of x.
template <typename A>
struct Largest {
  A best;
  int64_t place;
};
template <typename A>
__device__ inline Largest<A> largest_of(auto value_at, int64_t corner, const Windows& w) {
  Largest<A> largest{-INFINITY, 0};
  for (int64_t i = 0; i < w.window; ++i) {
    for (int64_t j = 0; j < w.window; ++j) {
      const A value = value_at(corner + (i * w.columns + j) * w.channels);
      if (value > largest.best || value != value) largest = {value, i * w.window + j};
    }
  }
  return largest;
}

// --- max_pool2d

template <typename T, typename A>
__global__ void max_pool_kernel(const T* __restrict__ x, Windows w, T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= w.groups * w.out_pixels() * w.channels) return;
  const Element at = element_of(i, w.out_columns, w.out_pixels(), w.channels);
  const auto value_at = [&](int64_t j) { return widen(x[j]); };
  out[i] = narrow<T>(largest_of<A>(value_at, corner_of(at, w), w).best);
}

// A thread does one element of x: it adds up what the windows that hold it pass on, row by row.
template <typename T, typename A>
__global__ void max_pool_backward_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Windows w, T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= w.groups * w.pixels() * w.channels) return;
  const Element at = element_of(i, w.columns, w.pixels(), w.channels);
  const Range rows = pooling::windows_of(at.row, w.window, w.stride, w.out_rows);
  const Range columns = pooling::windows_of(at.column, w.window, w.stride, w.out_columns);
  const auto value_at = [&](int64_t j) { return widen(x[j]); };
  const A value = widen(x[i]);
  A sum = 0;
  for (int64_t r = rows.first; r <= rows.last; ++r) {
    for (int64_t q = columns.first; q <= columns.last; ++q) {
      const Element window{at.group, r, q, at.channel};
      const auto largest = largest_of<A>(value_at, corner_of(window, w), w);
      const int64_t place = (at.row - r * w.stride) * w.window + at.column - q * w.stride;
      if (w.all_ties ? value == largest.best : place == largest.place) {
        const int64_t pixel = r * w.out_columns + q;
        sum += widen(gradient[(at.group * w.out_pixels() + pixel) * w.channels + at.channel]);
      }
    }
  }
  out[i] = narrow<T>(sum);
}

// --- relu_lrn_pool

// What the normalization reads where max(0, x) comes first.
template <typename T>
struct Rectified {
  const T* x;
  __device__ auto operator[](int64_t i) const {
    const auto value = widen(x[i]);
    return value < 0 ? decltype(value)(0) : value;
  }
  __device__ Rectified operator+(int64_t i) const { return {x + i}; }
};
template <typename T, typename A>
__device__ inline A passed(Rectified<T>, A value, A result) {
  return value <= 0 ? A(0) : result;
}

// What the normalization gets as gradient: of an element of x the sum over the windows that pass
// theirs on to it, row by row.
template <typename T, typename A>
struct Pooled {
  const T* gradient;
  const int16_t* winners;
  Windows w;
  __device__ A operator[](int64_t i) const {
    const Element at = element_of(i, w.columns, w.pixels(), w.channels);
    const Range rows = pooling::windows_of(at.row, w.window, w.stride, w.out_rows);
    const Range columns = pooling::windows_of(at.column, w.window, w.stride, w.out_columns);
    A sum = 0;
    for (int64_t r = rows.first; r <= rows.last; ++r) {
      for (int64_t q = columns.first; q <= columns.last; ++q) {
        const int64_t pixel = at.group * w.out_pixels() + r * w.out_columns + q;
        const int64_t place = (at.row - r * w.stride) * w.window + at.column - q * w.stride;
        const int64_t j = pixel * w.channels + at.channel;
        if (winners[j] >> place & 1) sum += widen(gradient[j]);
      }
    }
    return sum;
  }
};

// A thread does one window of one channel: it normalizes each of its places, and rounds them as if
// they went through memory. `winners` may be null.
template <typename T, typename A, typename X>
__device__ inline void fused(
    X x, const Problem<A>& p, const Windows& w, T* out, int16_t* winners, bool relu_last) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= w.groups * w.out_pixels() * w.channels) return;
  const Element at = element_of(i, w.out_columns, w.out_pixels(), w.channels);
  const auto value_at = [&](int64_t j) -> A {
    const A base =
        local_response_norm_cuda::base_at(x, local_response_norm_cuda::place_of(j, p), p);
    return widen(narrow<T>(widen(x[j]) * local_response_norm_cuda::inverse_powers(base, p).power));
  };
  const int64_t corner = corner_of(at, w);
  A best = -INFINITY;
  int bits = w.all_ties ? 0 : 1;
  for (int64_t row = 0; row < w.window; ++row) {
    for (int64_t column = 0; column < w.window; ++column) {
      const A value = value_at(corner + (row * w.columns + column) * w.channels);
      const int bit = 1 << (row * w.window + column);
      const bool is_larger = value > best || value != value;
      if (is_larger) best = value;
      if (!w.all_ties) {
        bits = is_larger ? bit : bits;
      } else {
        bits = (is_larger ? 0 : bits) | (value == best ? bit : 0);
      }
    }
  }
  if (relu_last) {
    if (best <= 0) bits = 0;
    if (best < 0) best = 0;
  }
  out[i] = narrow<T>(best);
  if (winners) winners[i] = static_cast<int16_t>(bits);
}

template <typename T, typename A>
__global__ void fused_kernel(
    const T* __restrict__ x, Problem<A> p, Windows w, bool relu_first, T* __restrict__ out,
    int16_t* __restrict__ winners) {
  if (relu_first) {
    fused<T, A>(Rectified<T>{x}, p, w, out, winners, false);
  } else {
    fused<T, A>(x, p, w, out, winners, true);
  }
}

// The gradient: kernels of the normalization, which read its gradient through Pooled.
template <bool kReluFirst, typename T>
__device__ inline auto seen(const T* x) {
  if constexpr (kReluFirst) {
    return Rectified<T>{x};
  } else {
    return x;
  }
}
template <bool kReluFirst, typename T, typename A>
__global__ void fused_backward_planes_kernel(
    Pooled<T, A> gradient, const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  local_response_norm_cuda::backward_planes(gradient, seen<kReluFirst>(x), p, out);
}
template <bool kReluFirst, typename T, typename A>
__global__ void fused_backward_rows_kernel(
    Pooled<T, A> gradient, const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  local_response_norm_cuda::backward_rows(gradient, seen<kReluFirst>(x), p, out);
}
template <bool kReluFirst, typename T, typename A>
__global__ void fused_terms_any_kernel(
    Pooled<T, A> gradient, const T* __restrict__ x, Problem<A> p, A* __restrict__ terms) {
  local_response_norm_cuda::terms_any(gradient, seen<kReluFirst>(x), p, terms);
}
template <bool kReluFirst, typename T, typename A>
__global__ void fused_backward_any_kernel(
    Pooled<T, A> gradient, const T* __restrict__ x, const A* __restrict__ terms, Problem<A> p,
    T* __restrict__ out) {
  local_response_norm_cuda::backward_any(gradient, seen<kReluFirst>(x), terms, p, out);
}

// --- Host code: `launch` as in local_response_norm.cuh.

template <typename T, typename A, typename Launch>
void launch_max_pool(const T* x, const Windows& w, T* out, const Launch& launch) {
  const int64_t size = w.groups * w.out_pixels() * w.channels;
  launch(max_pool_kernel<T, A>, blocks_for(size, kThreads), dim3(kThreads), size_t(0), x, w, out);
}

template <typename T, typename A, typename Launch>
void launch_max_pool_backward(
    const T* gradient, const T* x, const Windows& w, T* out, const Launch& launch) {
  const int64_t size = w.groups * w.pixels() * w.channels;
  launch(
      max_pool_backward_kernel<T, A>, blocks_for(size, kThreads), dim3(kThreads), size_t(0),
      gradient, x, w, out);
}

template <typename T, typename A, typename Launch>
void launch_fused(
    const T* x, const Problem<A>& p, const Windows& w, bool relu_first, T* out, int16_t* winners,
    const Launch& launch) {
  const int64_t size = w.groups * w.out_pixels() * w.channels;
  launch(
      fused_kernel<T, A>, blocks_for(size, kThreads), dim3(kThreads), size_t(0), x, p, w,
      relu_first, out, winners);
}

// With memory for `terms` where local_response_norm_cuda::needs_terms(p).
template <bool kReluFirst, typename T, typename A, typename Launch>
void launch_fused_backward(
    const Pooled<T, A>& gradient, const T* x, const Problem<A>& p, A* terms, T* out,
    const Launch& launch) {
  const int64_t columns = p.groups * p.pixels;
  if (local_response_norm_cuda::needs_terms(p)) {
    const unsigned blocks = blocks_for(columns * p.channels, kThreads);
    launch(
        fused_terms_any_kernel<kReluFirst, T, A>, blocks, dim3(kThreads), size_t(0), gradient, x, p,
        terms);
    launch(
        fused_backward_any_kernel<kReluFirst, T, A>, blocks, dim3(kThreads), size_t(0), gradient, x,
        static_cast<const A*>(terms), p, out);
    return;
  }
  if (!p.is_rows) {
    launch(
        fused_backward_planes_kernel<kReluFirst, T, A>, blocks_for(columns, kThreads),
        dim3(kThreads), size_t(0), gradient, x, p, out);
    return;
  }
  const int64_t bytes = (3 * p.channels + 4 * p.reach) * static_cast<int64_t>(sizeof(A));
  const int64_t rows = local_response_norm_cuda::rows_in_block(bytes);
  launch(
      fused_backward_rows_kernel<kReluFirst, T, A>, blocks_for(columns, rows),
      dim3(local_response_norm_cuda::kThreadsAlongChannels, rows),
      static_cast<size_t>(rows * bytes), gradient, x, p, out);
}

}  // namespace pooling_cuda
