// Dropout with stateless draws on the CPU (paper 4.2): the words of many counters at a time.
//
// The schema and the checks are in philox_dropout.py; those here serve callers of the registered
// operator.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "philox_dropout_host.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define REPLICA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REPLICA_CLONES
#endif

namespace {

using namespace philox_dropout;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kCounters = 32;  // of one call: eight registers of AVX-512

// The words of the counters (step, layer, row, first), (.., first + 1), ..., one after the other.
REPLICA_CLONES void draw_row(
    Key key, uint32_t step, uint32_t layer, uint32_t row, uint32_t first, uint32_t* words) {
  uint32_t c0[kCounters], c1[kCounters], c2[kCounters], c3[kCounters];
  for (int i = 0; i < kCounters; ++i) {
    c0[i] = step;
    c1[i] = layer;
    c2[i] = row;
    c3[i] = first + i;
  }
  for (int round = 0; round < philox::kRounds; ++round) {
    const uint32_t key0 = key.word0 + round * philox::kIncrement0;
    const uint32_t key1 = key.word1 + round * philox::kIncrement1;
    for (int i = 0; i < kCounters; ++i) {
      philox::round_once(c0[i], c1[i], c2[i], c3[i], key0, key1);
    }
  }
  for (int i = 0; i < kCounters; ++i) {
    words[4 * i] = c0[i];
    words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i];
    words[4 * i + 3] = c3[i];
  }
}

template <typename T, typename A>
void run(const Tensor& x, const Problem& p, const Tensor& step, const Tensor& rows, Tensor& out) {
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  const auto* row_of = static_cast<const int64_t*>(rows.const_data_ptr());
  const auto at_step = static_cast<uint32_t>(*static_cast<const int64_t*>(step.const_data_ptr()));
  constexpr int64_t kUnits = 4 * kCounters;
  torch::stable::parallel_for(0, p.rows, 4, [&](int64_t begin, int64_t end) {
    uint32_t words[kUnits];
    for (int64_t i = begin; i < end; ++i) {
      // Units of the whole layer; a block begins where a counter does.
      for (int64_t first = p.first_unit / 4 * 4; first < p.first_unit + p.units; first += kUnits) {
        draw_row(
            p.key, at_step, p.layer, static_cast<uint32_t>(row_of[i]),
            static_cast<uint32_t>(first / 4), words);
        const int64_t start = std::max(first, p.first_unit);
        const int64_t stop = std::min(first + kUnits, p.first_unit + p.units);
        const int64_t shift = i * p.units - p.first_unit;
        for (int64_t unit = start; unit < stop; ++unit) {
          const T value = input[shift + unit];
          const bool stays = words[unit - first] < p.threshold;
          output[shift + unit] = stays ? value : static_cast<T>(static_cast<A>(value) * A(0));
        }
      }
    }
  });
}

void compute(
    const Tensor& x, const Problem& p, const Tensor& step, const Tensor& rows, Tensor& out) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run<double, double>(x, p, step, rows, out);
    case ScalarType::BFloat16:
      return run<BFloat16, float>(x, p, step, rows, out);
    case ScalarType::Half:
      return run<Half, float>(x, p, step, rows, out);
    default:
      return run<float, float>(x, p, step, rows, out);
  }
}

}  // namespace

REPLICA_REGISTER_PHILOX_DROPOUT(CPU, compute)
