// What the CPU and the CUDA library do alike around dropout. The checks have twins in
// philox_dropout.py; these serve callers of the registered operator.
#pragma once

#include <cstdint>

#include "philox_dropout_problem.h"
#include "tensor_checks.h"

namespace philox_dropout {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(const Tensor& x, const Tensor& step, const Tensor& rows, int64_t threshold) {
  STD_TORCH_CHECK(
      x.dim() == 2, "philox_dropout: expected x of (N, units), got ", x.dim(), " dimensions");
  tensor_checks::check_type("philox_dropout", x);
  const auto is_index = [&](const Tensor& t) {
    return t.scalar_type() == ScalarType::Long && t.is_cpu() == x.is_cpu() &&
           t.get_device() == x.get_device() && t.is_contiguous();
  };
  STD_TORCH_CHECK(
      is_index(step) && step.numel() == 1 && is_index(rows) && rows.dim() == 1 &&
          rows.size(0) == x.size(0),
      "philox_dropout: expected a step and a row of each x, int64 on the device of x");
  STD_TORCH_CHECK(
      threshold >= 0 && threshold <= (int64_t{1} << 32),
      "philox_dropout: expected a threshold of 0 to 2^32, got ", threshold);
}

template <auto compute>
Tensor dropout(
    const Tensor& x, int64_t key0, int64_t key1, const Tensor& step, int64_t layer,
    const Tensor& rows, int64_t first_unit, int64_t threshold) {
  check(x, step, rows, threshold);
  const Tensor dense = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(dense);
  const Problem p{
      x.size(0),
      x.size(1),
      first_unit,
      static_cast<uint32_t>(layer),
      {static_cast<uint32_t>(key0), static_cast<uint32_t>(key1)},
      static_cast<uint64_t>(threshold)};
  if (p.rows > 0 && p.units > 0) compute(dense, p, step, rows, out);
  return out;
}

}  // namespace philox_dropout

#define REPLICA_REGISTER_PHILOX_DROPOUT(device, compute)                       \
  STABLE_TORCH_LIBRARY_IMPL(replica, device, m) {                              \
    m.impl("philox_dropout", TORCH_BOX((&philox_dropout::dropout<&compute>))); \
  }
