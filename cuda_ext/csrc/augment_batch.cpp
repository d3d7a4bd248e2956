// Crops, reflections, mean image and color noise on the CPU (paper 2, 4.1), in one pass from the
// stored bytes to the batch.
//
// The schema and the checks are in augment_batch.py; those here serve callers of the registered
// operator. PyTorch calls it without the interpreter's lock.

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

#include "augment_batch_host.h"
#include "instruction_sets.h"

namespace {

using namespace augment_batch;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Copies bytes; past the caches as 16 at a time, which every x86-64 can.
inline void copy_row(const uint8_t* from, int64_t bytes, bool is_streamed, uint8_t* to) {
#if REPLICA_X86
  if (is_streamed) {
    for (int64_t i = 0; i < bytes; i += 16) {
      const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), values);
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

#define REPLICA_LOOPS "augment_batch_kernels.inl"
#include "instruction_sets.inl"

// A result larger than this is written past the caches, which would read it first and hold
// nothing else after it. On one core of an AMD EPYC (Zen 4, 32 MB of L3): equal at 10 MB, 1.1 times
// as fast at 38 MB, and slower at 5 MB, which then stay in the cache.
constexpr int64_t kStreamedBytes = 16 << 20;

// The first pixel of each image of the batch.
std::vector<const uint8_t*> crops_of(const Tensors& images, const Place* places, const Problem& p) {
  std::vector<int64_t> ends;
  for (const Tensor& part : images) ends.push_back((ends.empty() ? 0 : ends.back()) + part.size(0));
  std::vector<const uint8_t*> crops;
  for (int64_t i = 0; i < p.batch; ++i) {
    const Place& place = places[i];
    STD_TORCH_CHECK(
        p.holds(place), "augment_batch: expected places of ", p.images, " images of ", p.whole_rows,
        " x ", p.whole_columns, ", got index ", place.index, ", top ", place.top, ", left ",
        place.left, ", flip ", place.flip);
    const size_t part = std::upper_bound(ends.begin(), ends.end(), place.index) - ends.begin();
    const int64_t row = place.index - (part == 0 ? 0 : ends[part - 1]);
    crops.push_back(
        static_cast<const uint8_t*>(images[part].const_data_ptr()) + 3 * row * p.rows * p.columns +
        p.first_on_image(place));
  }
  return crops;
}

// Whether all rows of the result begin where a vector that is written past the caches may.
bool can_be_streamed(const void* out, int64_t row_bytes, int64_t alignment, const Problem& p) {
  return REPLICA_X86 && p.is_last && row_bytes * p.side * p.batch >= kStreamedBytes &&
         row_bytes % alignment == 0 && reinterpret_cast<uintptr_t>(out) % alignment == 0;
}

template <typename T>
void make_all(
    const std::vector<const uint8_t*>& crops, const Place* places, const Optional& mean_image,
    const Optional& shifts, const Problem& p, T* out, int64_t begin, int64_t end) {
  const int64_t size = 3 * p.side * p.side, row_bytes = 3 * p.side * sizeof(T);
  constexpr bool kIsCutOnly = std::is_same_v<T, uint8_t>;
  const bool is_streamed = can_be_streamed(out, row_bytes, kIsCutOnly ? 16 : 64, p);
  if constexpr (kIsCutOnly) {
    const auto cut = REPLICA_IN_USE(uint8_t, cut_image);
    for (int64_t i = begin; i < end; ++i) {
      cut(crops[i], p, places[i].flip, is_streamed, out + i * size);
    }
  } else {
    const auto make = REPLICA_IN_USE(T, make_image<T>);
    const std::vector<float> nothing(3 * p.side);
    std::vector<T> row_buffer(p.is_last ? 0 : 3 * p.side);
    const auto* mean =
        mean_image ? static_cast<const float*>(mean_image->const_data_ptr()) : nullptr;
    const auto* shift = shifts ? static_cast<const float*>(shifts->const_data_ptr()) : nullptr;
    for (int64_t i = begin; i < end; ++i) {
      make(
          crops[i], mean ? mean + p.first_on_mean(places[i]) : nothing.data(),
          mean ? 3 * p.whole_columns : 0, shift ? shift + 3 * i : nothing.data(), p, places[i].flip,
          is_streamed, row_buffer.data(), out + i * size);
    }
  }
#if REPLICA_X86
  if (is_streamed) _mm_sfence();  // before another thread reads
#endif
}

void augment(
    const Tensors& images, const Tensor& places, const Optional& mean_image, const Optional& shifts,
    Tensor out, bool parallel, bool is_central, double divisor) {
  const Problem p = problem_of(images, places, mean_image, shifts, out, is_central, divisor);
  if (p.batch == 0) return;
  const auto* of_images = static_cast<const Place*>(places.const_data_ptr());
  const auto crops = crops_of(images, of_images, p);
  const auto with_type = [&]<typename T>(T) {
    auto* result = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(
        0, p.batch, parallel ? 1 : p.batch, [&](int64_t begin, int64_t end) {
          make_all(crops, of_images, mean_image, shifts, p, result, begin, end);
        });
  };
  switch (out.scalar_type()) {
    case ScalarType::Byte:
      return with_type(uint8_t{});
    case ScalarType::BFloat16:
      return with_type(BFloat16{});
    default:
      return with_type(float{});
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(replica, CPU, m) { m.impl("augment_batch_", TORCH_BOX(&augment)); }
