// GPU kernels of the split convolution in float32 (paper 3.5), forward and both gradients.
//
// Free of torch: split_conv2d.cu gives these kernels to PyTorch, and the tests run this file on a
// CPU (tests/cuda_emulation.h).
//
// Each of the three is a matrix product for each tower, whose factors are gathered from the tensors
// as they lie ("implicit GEMM"; no copy of patches is made):
//
//   of        rows     columns          summed over
//   y         kernels  places of y      taps
//   dx        channels places of x      taps of the kernels
//   dweight   kernels  taps             places of y
//
// A place is (image, row, column), a tap (channel, row, column) of a kernel, where the taps of dx
// have kernels in the place of channels. A result is written by one thread; where a long sum is cut
// into parts, a second kernel adds them in their order. So runs agree bit for bit: there is no
// atomic addition, and the number of parts depends on the problem alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "split_conv2d_problem.h"

namespace split_conv2d_cuda {

using split_conv2d::Problem;
using split_conv2d::Strides;

// A block of threads does kRows x kColumns results, kDepth terms at a time; each thread
// kPerThread x kPerThread of them. None of these was measured: device and date are still to come.
constexpr int kRows = 64, kColumns = 128, kDepth = 8, kPerThread = 8;
constexpr int kThreads = kRows * kColumns / (kPerThread * kPerThread);
constexpr int kPad = 4;  // so that the threads that fill a tile meet different banks of memory
constexpr int kRowPitch = kRows + kPad, kColumnPitch = kColumns + kPad;
constexpr size_t kSharedBytes = sizeof(float) * kDepth * (kRowPitch + kColumnPitch);

// n / divisor for 0 <= n < 2^31 by a multiplication (Granlund and Montgomery, PLDI 1994).
struct Divisor {
  uint32_t value, multiplier, shift;

  static Divisor of(int64_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(divisor)) ++shift;
    const uint64_t power = uint64_t{1} << shift;
    const uint64_t difference = power - static_cast<uint64_t>(divisor);
    const uint64_t multiplier = (difference << 32) / static_cast<uint64_t>(divisor) + 1;
    return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(multiplier), shift};
  }
};

__device__ inline uint32_t quotient(uint32_t n, const Divisor& by) {
  const uint32_t high = static_cast<uint32_t>((uint64_t{n} * by.multiplier) >> 32);
  return (high + n) >> by.shift;
}

// Three numbers counted together: `a` slowest, or with a_is_fastest `a` fastest.
struct Counter {
  Divisor b, c, fastest;
  bool a_is_fastest;

  static Counter of(int64_t a, int64_t b, int64_t c, bool a_is_fastest) {
    return {Divisor::of(b), Divisor::of(c), Divisor::of(a_is_fastest ? a : c), a_is_fastest};
  }
};

struct Triple {
  int a, b, c;
};

__device__ inline Triple at(uint32_t n, const Counter& counter) {
  const uint32_t rest = quotient(n, counter.fastest);
  const uint32_t fast = n - rest * counter.fastest.value;
  const Divisor& middle = counter.a_is_fastest ? counter.c : counter.b;
  const uint32_t slow = quotient(rest, middle);
  const uint32_t mid = rest - slow * middle.value;
  const int first = static_cast<int>(slow), second = static_cast<int>(mid);
  const int third = static_cast<int>(fast);
  if (counter.a_is_fastest) return {third, first, second};
  return {first, second, third};
}

__device__ inline int64_t offset(const Strides& by, int64_t a, int64_t b, int64_t c, int64_t d) {
  return a * by.image + b * by.channel + c * by.row + d * by.column;
}

// x where a tap of the kernels meets a place of y; zero beyond the borders.
__device__ inline float value_of_x(
    const float* x, const Problem& p, int tower, const Triple& place, const Triple& tap) {
  const int64_t row = place.b * p.stride - p.before + tap.b;
  const int64_t column = place.c * p.stride - p.before + tap.c;
  if (row < 0 || row >= p.height || column < 0 || column >= p.width) return 0.0f;
  return x[offset(p.x, place.a, tower * p.channels + tap.a, row, column)];
}

// What the three products are made of. `left` is a value of the factor of (row, depth), `right` of
// that of (depth, column); `result` is where (row, column) goes.
struct Forward {
  static constexpr bool kColumnsArePlaces = true;
  Problem p;
  const float *x, *weight;

  __device__ float left(int tower, int row, const Triple& tap) const {
    return weight[offset(p.weight, tower * p.kernels + row, tap.a, tap.b, tap.c)];
  }
  __device__ float right(int tower, const Triple& tap, const Triple& place) const {
    return value_of_x(x, p, tower, place, tap);
  }
  __device__ int64_t result(int tower, int row, const Triple& place) const {
    return offset(p.y, place.a, tower * p.kernels + row, place.b, place.c);
  }
};

struct DataGradient {
  static constexpr bool kColumnsArePlaces = true;
  Problem p;
  const float *gradient, *weight;

  __device__ float left(int tower, int row, const Triple& tap) const {
    return weight[offset(p.weight, tower * p.kernels + tap.a, row, tap.b, tap.c)];
  }
  // The place of y whose kernel has this tap on this place of x, where there is one.
  __device__ float right(int tower, const Triple& tap, const Triple& place) const {
    const int64_t row = place.b + p.before - tap.b, column = place.c + p.before - tap.c;
    if (row < 0 || column < 0 || row % p.stride != 0 || column % p.stride != 0) return 0.0f;
    const int64_t out_row = row / p.stride, out_column = column / p.stride;
    if (out_row >= p.out_rows || out_column >= p.out_columns) return 0.0f;
    return gradient[offset(p.y, place.a, tower * p.kernels + tap.a, out_row, out_column)];
  }
  __device__ int64_t result(int tower, int row, const Triple& place) const {
    return offset(p.x, place.a, tower * p.channels + row, place.b, place.c);
  }
};

struct WeightGradient {
  static constexpr bool kColumnsArePlaces = false;
  Problem p;
  const float *gradient, *x;

  __device__ float left(int tower, int row, const Triple& place) const {
    return gradient[offset(p.y, place.a, tower * p.kernels + row, place.b, place.c)];
  }
  __device__ float right(int tower, const Triple& place, const Triple& tap) const {
    return value_of_x(x, p, tower, place, tap);
  }
  __device__ int64_t result(int tower, int row, const Triple& tap) const {
    return offset(p.weight, tower * p.kernels + row, tap.a, tap.b, tap.c);
  }
};

// Sizes of the matrices of one tower, and how their columns and terms are counted.
struct Shape {
  int rows, columns, depth, towers;
  Counter column, term;
  int parts;           // of the sum
  int terms_per_part;  // a multiple of kDepth
};

// What becomes of a sum.
struct End {
  const float* bias;  // one for each row of each tower, or null
  bool adds;          // to what is there
  bool relu;
};

__device__ inline void finish(float* out, int64_t at, float sum, const End& end, int64_t bias_at) {
  if (end.adds) sum += out[at];
  if (end.bias != nullptr) sum += end.bias[bias_at];
  out[at] = end.relu && sum < 0 ? 0.0f : sum;
}

__device__ inline float* shared_floats() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return reinterpret_cast<float*>(shared_memory);
}

// One tile of the product, or where the sum has parts one part of it, into `partial` (part, tower,
// row, column). Threads of a warp fill a tile along the depth, whose terms lie together in memory
// for the left factor (taps of a kernel; places of a channel), or for the right one along the
// columns where those are neighboring places. The next terms are read while these are multiplied.
template <typename Factors>
__global__ void product_kernel(
    Factors factors, Shape shape, End end, float* __restrict__ out, float* __restrict__ partial) {
  constexpr bool kAlongColumns = Factors::kColumnsArePlaces;
  constexpr int kLeft = kRows * kDepth / kThreads, kRight = kColumns * kDepth / kThreads;
  static_assert(kThreads % kDepth == 0 && kThreads == kColumns, "each thread fills its share");
  float* left = shared_floats();             // (depth, row)
  float* right = left + kDepth * kRowPitch;  // (depth, column)
  const int thread = threadIdx.x;
  const int row_tiles = (shape.rows + kRows - 1) / kRows;
  const int column_tiles = (shape.columns + kColumns - 1) / kColumns;
  int tile = blockIdx.x;
  const int first_row = tile % row_tiles * kRows;
  tile /= row_tiles;
  const int first_column = tile % column_tiles * kColumns;
  tile /= column_tiles;
  const int tower = tile % shape.towers, part = tile / shape.towers;
  const int begin = part * shape.terms_per_part;
  const int stop = min(begin + shape.terms_per_part, shape.depth);

  // Which values of the tiles this thread fills.
  const int own_depth = thread % kDepth, own_row = thread / kDepth;
  Triple columns[kAlongColumns ? 1 : kRight];
  bool is_column[kAlongColumns ? 1 : kRight];
#pragma unroll
  for (int i = 0; i < (kAlongColumns ? 1 : kRight); ++i) {
    const int column = first_column + (kAlongColumns ? thread : own_row + i * (kThreads / kDepth));
    is_column[i] = column < shape.columns;
    columns[i] = at(is_column[i] ? column : 0, shape.column);
  }
  float next_left[kLeft], next_right[kRight];
  const auto read = [&](int first) {
    const int term = first + own_depth;
    const bool is_term = term < stop;
    const Triple own = at(is_term ? term : 0, shape.term);
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const int row = first_row + own_row + i * (kThreads / kDepth);
      next_left[i] = is_term && row < shape.rows ? factors.left(tower, row, own) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRight; ++i) {
      if (kAlongColumns) {
        const bool is_inside = first + i < stop && is_column[0];
        const Triple other = at(is_inside ? first + i : 0, shape.term);
        next_right[i] = is_inside ? factors.right(tower, other, columns[0]) : 0.0f;
      } else {
        const int j = kAlongColumns ? 0 : i;
        next_right[i] = is_term && is_column[j] ? factors.right(tower, own, columns[j]) : 0.0f;
      }
    }
  };

  float sums[kPerThread][kPerThread] = {};
  const int half_row = thread / (kColumns / kPerThread) * 4;
  const int half_column = thread % (kColumns / kPerThread) * 4;
  // Of a thread's eight rows and columns four each lie together, so that a warp reads the tiles
  // without conflicts.
  const auto row_of = [&](int i) { return half_row + i % 4 + i / 4 * (kRows / 2); };
  const auto column_of = [&](int i) { return half_column + i % 4 + i / 4 * (kColumns / 2); };
  read(begin);
  for (int first = begin; first < stop; first += kDepth) {
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      left[own_depth * kRowPitch + own_row + i * (kThreads / kDepth)] = next_left[i];
    }
#pragma unroll
    for (int i = 0; i < kRight; ++i) {
      const int place = kAlongColumns
                            ? i * kColumnPitch + thread
                            : own_depth * kColumnPitch + own_row + i * (kThreads / kDepth);
      right[place] = next_right[i];
    }
    __syncthreads();
    if (first + kDepth < stop) read(first + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float a[kPerThread], b[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        a[i] = left[d * kRowPitch + row_of(i)];
        b[i] = right[d * kColumnPitch + column_of(i)];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sums[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int column = first_column + column_of(j);
    if (column >= shape.columns) continue;
    const Triple triple = at(column, shape.column);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int row = first_row + row_of(i);
      if (row >= shape.rows) continue;
      if (shape.parts == 1) {
        finish(out, factors.result(tower, row, triple), sums[i][j], end, tower * shape.rows + row);
      } else {
        const int64_t matrix = static_cast<int64_t>(part) * shape.towers + tower;
        partial[(matrix * shape.rows + row) * shape.columns + column] = sums[i][j];
      }
    }
  }
}

// A thread adds the parts of one result, from the first to the last.
template <typename Factors>
__global__ void add_parts_kernel(
    Factors factors, Shape shape, End end, const float* __restrict__ partial,
    float* __restrict__ out) {
  const int64_t results = static_cast<int64_t>(shape.towers) * shape.rows * shape.columns;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= results) return;
  float sum = 0.0f;
  for (int part = 0; part < shape.parts; ++part) sum += partial[part * results + thread];
  const int64_t row = thread / shape.columns;  // of all towers
  const Triple triple = at(static_cast<uint32_t>(thread % shape.columns), shape.column);
  const int tower = static_cast<int>(row / shape.rows);
  finish(out, factors.result(tower, static_cast<int>(row % shape.rows), triple), sum, end, row);
}

// --- Host

// So that what begins below it ends below 2^31: a tile, or a part of a sum.
constexpr int64_t kMost = INT32_MAX - 8192;

inline int checked(int64_t count, const char* what) {
  if (count > kMost) {
    throw std::runtime_error(
        "split_conv2d: expected at most " + std::to_string(kMost) + " " + what + ", got " +
        std::to_string(count));
  }
  return static_cast<int>(count);
}

// How many blocks of threads a device should have at least, and how many terms a part: not
// measured. They decide into how many parts a sum is cut, so they are the same on every device.
constexpr int64_t kBlocksWanted = 512, kTermsAtLeast = 512;

inline Shape shape_of(
    int64_t rows, int64_t columns, int64_t depth, int64_t towers, const Counter& column,
    const Counter& term) {
  const int64_t tiles =
      towers * ((rows + kRows - 1) / kRows) * ((columns + kColumns - 1) / kColumns);
  const int64_t most = std::max<int64_t>(1, depth / kTermsAtLeast);
  int64_t parts = std::clamp<int64_t>(kBlocksWanted / std::max<int64_t>(1, tiles), 1, most);
  const int64_t slabs = (depth + kDepth - 1) / kDepth;
  const int64_t slabs_per_part = std::max<int64_t>(1, (slabs + parts - 1) / parts);
  parts = std::max<int64_t>(1, (slabs + slabs_per_part - 1) / slabs_per_part);
  checked(tiles * parts, "blocks of threads");
  return {
      checked(rows, "rows"),
      checked(columns, "columns"),
      checked(depth, "terms of a sum"),
      checked(towers, "towers"),
      column,
      term,
      static_cast<int>(parts),
      checked(slabs_per_part * kDepth, "terms of a part")};
}

inline Counter taps_of(const Problem& p, int64_t channels) {
  // As they lie in memory: with channels last those of a pixel are neighbors.
  return Counter::of(channels, p.side_rows, p.side_columns, p.weight.channel == 1);
}

inline Shape shape_of(const Forward& f) {
  const Problem& p = f.p;
  return shape_of(
      p.kernels, p.images * p.out_rows * p.out_columns, p.channels * p.side_rows * p.side_columns,
      p.towers, Counter::of(p.images, p.out_rows, p.out_columns, false), taps_of(p, p.channels));
}

inline Shape shape_of(const DataGradient& f) {
  const Problem& p = f.p;
  return shape_of(
      p.channels, p.images * p.height * p.width, p.kernels * p.side_rows * p.side_columns, p.towers,
      Counter::of(p.images, p.height, p.width, false), taps_of(p, p.kernels));
}

inline Shape shape_of(const WeightGradient& f) {
  const Problem& p = f.p;
  return shape_of(
      p.kernels, p.channels * p.side_rows * p.side_columns, p.images * p.out_rows * p.out_columns,
      p.towers, taps_of(p, p.channels), Counter::of(p.images, p.out_rows, p.out_columns, false));
}

// How many values the parts of the sums take, which `launch_product` is given memory for.
inline int64_t partial_size(const Shape& shape) {
  if (shape.parts == 1) return 0;
  return static_cast<int64_t>(shape.parts) * shape.towers * shape.rows * shape.columns;
}

template <typename Factors, typename Launch>
void launch_product(
    const Factors& factors, const Shape& shape, const End& end, float* partial, float* out,
    const Launch& launch) {
  const int64_t results = static_cast<int64_t>(shape.towers) * shape.rows * shape.columns;
  if (results == 0) return;
  const int64_t tiles = static_cast<int64_t>(shape.towers) * shape.parts *
                        ((shape.rows + kRows - 1) / kRows) *
                        ((shape.columns + kColumns - 1) / kColumns);
  launch(
      product_kernel<Factors>, static_cast<unsigned>(tiles), dim3(kThreads), kSharedBytes, factors,
      shape, end, out, partial);
  if (shape.parts == 1) return;
  constexpr int64_t kAddThreads = 256;
  const int64_t blocks = (results + kAddThreads - 1) / kAddThreads;
  launch(
      add_parts_kernel<Factors>, static_cast<unsigned>(checked(blocks, "blocks of threads")),
      dim3(kAddThreads), size_t{0}, factors, shape, end, partial, out);
}

}  // namespace split_conv2d_cuda
