// GPU kernels of the 2012 source's normalization between neighbors in one map. Free of torch:
// same_map_norm.cu gives them to PyTorch, and the tests run this file on a CPU
// (tests/cuda_emulation.h).
//
// A thread does one element and gathers its window through the caches, row by row; threads of a
// warp have neighboring elements. Nothing is added by two threads, so runs agree bit for bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda_types.cuh"
#include "same_map_norm_problem.h"

namespace same_map_norm_cuda {

using namespace cuda_types;
using same_map_norm::Problem;

// The sum of value_at(element) over the window around element i.
template <typename A>
__device__ inline A window_sum(int64_t i, const Problem<A>& p, auto value_at) {
  const int64_t column = i / p.channels % p.columns;
  const int64_t row = i / p.channels / p.columns % p.rows;
  A sum = 0;
  for (int64_t r = -p.reach_rows; r <= p.reach_rows; ++r) {
    if (row + r < 0 || row + r >= p.rows) continue;
    for (int64_t q = -p.reach_columns; q <= p.reach_columns; ++q) {
      if (column + q < 0 || column + q >= p.columns) continue;
      sum += value_at(i + (r * p.columns + q) * p.channels);
    }
  }
  return sum;
}

// base^-beta and 1 / base of element i.
template <typename A>
struct Powers {
  A power, inverse;
};
template <typename T, typename A>
__device__ inline Powers<A> powers_at(const T* x, int64_t i, const Problem<A>& p) {
  const A base = p.k + p.alpha * window_sum(i, p, [&](int64_t j) -> A {
                         const A value = widen(x[j]);
                         return value * value;
                       });
  if (!p.three_quarters) return {static_cast<A>(pow(base, -p.beta)), 1 / base};
  const A root = static_cast<A>(1 / sqrt(base));
  return {static_cast<A>(root * sqrt(root)), 1 / base};
}

template <typename A>
__device__ inline int64_t size_of(const Problem<A>& p) {
  return p.groups * p.channels * p.rows * p.columns;
}

template <typename T, typename A>
__global__ void forward_kernel(const T* __restrict__ x, Problem<A> p, T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_of(p)) return;
  out[i] = narrow<T>(widen(x[i]) * powers_at(x, i, p).power);
}

// What an element passes on to the windows that hold it.
template <typename T, typename A>
__global__ void terms_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, Problem<A> p, A* __restrict__ terms) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_of(p)) return;
  const Powers<A> powers = powers_at(x, i, p);
  terms[i] = widen(gradient[i]) * powers.power * powers.inverse * widen(x[i]);
}

template <typename T, typename A>
__global__ void backward_kernel(
    const T* __restrict__ gradient, const T* __restrict__ x, const A* __restrict__ terms,
    Problem<A> p, T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size_of(p)) return;
  const A sum = window_sum(i, p, [&](int64_t j) { return terms[j]; });
  const A direct = widen(gradient[i]) * powers_at(x, i, p).power;
  out[i] = narrow<T>(direct - 2 * p.alpha * p.beta * widen(x[i]) * sum);
}

// Host code: `launch(kernel, grid, block, shared bytes, arguments...)` starts a kernel.
constexpr int64_t kThreads = 256;

template <typename A>
unsigned blocks_of(const Problem<A>& p) {
  const int64_t size = p.groups * p.channels * p.rows * p.columns;
  const int64_t blocks = (size + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(
        "same_map_norm: expected at most 2147483647 blocks of threads, got " +
        std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

template <typename T, typename A, typename Launch>
void launch_forward(const T* x, const Problem<A>& p, T* out, const Launch& launch) {
  launch(forward_kernel<T, A>, blocks_of(p), dim3(kThreads), size_t(0), x, p, out);
}

// `terms` has as many values as x.
template <typename T, typename A, typename Launch>
void launch_backward(
    const T* gradient, const T* x, const Problem<A>& p, A* terms, T* out, const Launch& launch) {
  const unsigned blocks = blocks_of(p);
  launch(terms_kernel<T, A>, blocks, dim3(kThreads), size_t(0), gradient, x, p, terms);
  launch(
      backward_kernel<T, A>, blocks, dim3(kThreads), size_t(0), gradient, x,
      static_cast<const A*>(terms), p, out);
}

}  // namespace same_map_norm_cuda
