// Max pooling on the CPU, by itself and in one pass with ReLU and local response normalization
// (paper 3.3, 3.4), forward and backward.
//
// The normalized rows that a row of windows needs stay in the caches and never reach memory.
// Schemas, shape functions and gradients are in max_pool2d.py and relu_lrn_pool.py.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "instruction_sets.h"
#include "pooling_host.h"

namespace {

using namespace pooling;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

#define REPLICA_LOOPS "pooling_kernels.inl"
#include "instruction_sets.inl"

// Into how many pieces the `rows` of each of `groups` are cut: a piece for each thread and some to
// even out, none with less than `least` rows.
int64_t pieces_of(int64_t groups, int64_t rows, int64_t least) {
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  return std::clamp<int64_t>(wanted / groups, 1, std::max<int64_t>(1, rows / least));
}

// Calls body(group, first row, last row) for all pieces, each of at most `most` rows, on all
// threads; `start()` makes what a thread keeps between them.
void for_each_piece(
    int64_t groups, int64_t rows, int64_t least, int64_t most, auto start, auto body) {
  const int64_t pieces = std::max(pieces_of(groups, rows, least), (rows + most - 1) / most);
  torch::stable::parallel_for(0, groups * pieces, 1, [&](int64_t begin, int64_t end) {
    auto kept = start();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i % pieces;
      body(i / pieces, piece * rows / pieces, (piece + 1) * rows / pieces, kept);
    }
  });
}

// Rows of planes that are done at once: as many as fit into half of the second-level cache.
int64_t rows_at_once(int64_t bytes_per_row) {
  constexpr int64_t kBytes = 256 * 1024;
  return std::max<int64_t>(1, kBytes / bytes_per_row);
}

template <typename T, typename A>
void run_fused(const Tensor& x, const Fused& f, const Tensor& out, const Tensor* winners) {
  const auto p = problem_of<A>(x, f.parameters);
  const Windows& w = f.windows;
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  auto* bits = winners ? static_cast<int16_t*>(winners->mutable_data_ptr()) : nullptr;
  if (p.is_rows) {
    const auto fused = REPLICA_IN_USE(T, fused_rows<T, A>);
    for_each_piece(
        w.groups, w.out_rows, 4, w.out_rows, [] { return 0; },
        [&](int64_t image, int64_t first, int64_t last, int) {
          const int64_t at = image * w.out_pixels() * w.channels;
          fused(
              input + image * w.pixels() * w.channels, p, w, f.relu_first, first, last, output + at,
              bits ? bits + at : nullptr);
        });
    return;
  }
  struct Kept {
    std::vector<T> normalized;
    std::vector<A> scratch;
  };
  const auto fused = REPLICA_IN_USE(T, fused_planes<T, A>);
  const int64_t bytes = p.channels * w.columns * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max<int64_t>(1, rows_at_once(bytes) / w.stride);
  for_each_piece(
      p.groups, w.out_rows, 4, most, [] { return Kept(); },
      [&](int64_t group, int64_t first, int64_t last, Kept& kept) {
        const int64_t at = group * p.channels * w.out_pixels();
        fused(
            input + group * p.channels * p.pixels, p, w, f.relu_first, first, last, kept.normalized,
            kept.scratch, output + at, bits ? bits + at : nullptr);
      });
}

template <typename T, typename A>
void run_fused_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& winners, const Fused& f,
    const Tensor& out) {
  const auto p = problem_of<A>(x, f.parameters);
  const Windows& w = f.windows;
  const auto* incoming = static_cast<const T*>(gradient.const_data_ptr());
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  const auto* bits = static_cast<const int16_t*>(winners.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  if (p.is_rows) {
    const auto fused = REPLICA_IN_USE(T, fused_rows_backward<T, A>);
    for_each_piece(
        w.groups, w.rows, 4, w.rows, [] { return std::vector<A>(); },
        [&](int64_t image, int64_t first, int64_t last, std::vector<A>& sums) {
          const int64_t at = image * w.pixels() * w.channels;
          const int64_t of_windows = image * w.out_pixels() * w.channels;
          fused(
              incoming + of_windows, bits + of_windows, input + at, p, w, f.relu_first, first, last,
              sums, output + at);
        });
    return;
  }
  struct Kept {
    std::vector<A> sums, scratch;
  };
  const auto fused = REPLICA_IN_USE(T, fused_planes_backward<T, A>);
  const int64_t bytes = p.channels * w.columns * static_cast<int64_t>(sizeof(A));
  for_each_piece(
      p.groups, w.rows, 4, rows_at_once(bytes), [] { return Kept(); },
      [&](int64_t group, int64_t first, int64_t last, Kept& kept) {
        const int64_t at = group * p.channels * p.pixels;
        const int64_t of_windows = group * p.channels * w.out_pixels();
        fused(
            incoming + of_windows, bits + of_windows, input + at, p, w, f.relu_first, first, last,
            kept.sums, kept.scratch, output + at);
      });
}

template <typename T, typename A>
void run_max_pool(const Tensor* gradient, const Tensor& x, const Windows& w, const Tensor& out) {
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  const auto* incoming = gradient ? static_cast<const T*>(gradient->const_data_ptr()) : nullptr;
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  const int64_t size = w.pixels() * w.channels, of_windows = w.out_pixels() * w.channels;
  const auto forward = REPLICA_IN_USE(T, pool_forward<A, T>);
  const auto backward = REPLICA_IN_USE(T, pool_backward<A, T>);
  torch::stable::parallel_for(0, w.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (incoming) {
        backward(incoming + i * of_windows, input + i * size, w, output + i * size);
      } else {
        forward(input + i * size, w, output + i * of_windows);
      }
    }
  });
}

// Calls body(T{}, A{}) with the type of x and that of sums.
void with_types(const Tensor& x, auto body) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return body(double{}, double{});
    case ScalarType::BFloat16:
      return body(BFloat16{}, float{});
    case ScalarType::Half:
      return body(Half{}, float{});
    default:
      return body(float{}, float{});
  }
}

void compute_max_pool(
    const Tensor* gradient, const Tensor& x, const Windows& w, const Tensor& out) {
  with_types(x, [&]<typename T, typename A>(T, A) { run_max_pool<T, A>(gradient, x, w, out); });
}

void compute_fused(const Tensor& x, const Fused& f, const Tensor& out, const Tensor* winners) {
  with_types(x, [&]<typename T, typename A>(T, A) { run_fused<T, A>(x, f, out, winners); });
}

void compute_fused_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& winners, const Fused& f,
    const Tensor& out) {
  with_types(x, [&]<typename T, typename A>(T, A) {
    run_fused_backward<T, A>(gradient, x, winners, f, out);
  });
}

}  // namespace

REPLICA_REGISTER_POOLING(CPU, compute_max_pool, compute_fused, compute_fused_backward)
