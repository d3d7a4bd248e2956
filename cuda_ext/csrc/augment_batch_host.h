// What the CPU and the CUDA library do alike around augment_batch. The checks have twins in
// augment_batch.py; these serve callers of the registered operator.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "augment_batch_problem.h"

namespace augment_batch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;

inline bool is_kind(
    const Tensor& tensor, ScalarType type, std::vector<int64_t> sizes, const Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == type &&
              tensor.is_contiguous() && tensor.is_cpu() == like.is_cpu() &&
              tensor.get_device() == like.get_device();
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = tensor.size(i) == sizes[i];
  return fits;
}

// What is asked for, after all checks but those of the places' values.
inline Problem problem_of(
    const Tensors& images, const Tensor& places, const Optional& mean_image, const Optional& shifts,
    const Tensor& out, bool is_central, double divisor) {
  STD_TORCH_CHECK(
      !images.empty() && images[0].dim() == 4 && out.dim() == 4 && out.size(1) == 3 &&
          out.size(2) == out.size(3),
      "augment_batch: expected images of (M, H, W, 3), for a result of (N, 3, S, S)");
  const ScalarType type = out.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Byte,
      "augment_batch: expected a result of float32, bfloat16 or uint8, got another type");
  STD_TORCH_CHECK(
      divisor > 0 && std::isfinite(divisor), "augment_batch: expected a divisor above 0, got ",
      divisor);
  STD_TORCH_CHECK(
      type != ScalarType::Byte || (!mean_image && !shifts && divisor == 1),
      "augment_batch: expected no mean image, shifts and divisor where the result is uint8");
  Problem p{};
  p.is_central = is_central;
  p.divisor = static_cast<float>(divisor);
  p.batch = out.size(0);
  p.side = out.size(2);
  p.rows = images[0].size(1);
  p.columns = images[0].size(2);
  for (const Tensor& part : images) {
    STD_TORCH_CHECK(
        part.dim() == 4 &&
            is_kind(part, ScalarType::Byte, {part.size(0), p.rows, p.columns, 3}, out),
        "augment_batch: expected images of uint8, (M, H, W, 3), all of one size, without gaps, on "
        "the device of the result");
    p.images += part.size(0);
  }
  p.whole_rows = mean_image && mean_image->dim() == 3 ? mean_image->size(0) : p.rows;
  p.whole_columns = mean_image && mean_image->dim() == 3 ? mean_image->size(1) : p.columns;
  p.is_cut = p.whole_rows != p.rows || p.whole_columns != p.columns;
  STD_TORCH_CHECK(
      !mean_image ||
          is_kind(*mean_image, ScalarType::Float, {p.whole_rows, p.whole_columns, 3}, out),
      "augment_batch: expected a mean image of float32, (H, W, 3), on the device of the result");
  STD_TORCH_CHECK(
      p.side >= 1 && p.side <= p.whole_rows && p.side <= p.whole_columns &&
          (!p.is_cut || (p.rows == p.side && p.columns == p.side)),
      "augment_batch: expected images of the size of the mean image, or crops of it, got ", p.rows,
      " x ", p.columns);
  STD_TORCH_CHECK(
      is_kind(places, ScalarType::Long, {p.batch, 4}, out) &&
          (!shifts || is_kind(*shifts, ScalarType::Float, {p.batch, 3}, out)),
      "augment_batch: expected places of int64, (N, 4), and shifts of float32, (N, 3)");
  const int64_t values = 3 * p.side * p.side;
  p.is_last = out.stride(1) == 1;
  const int64_t pixel = p.is_last ? 3 : 1, plane = p.is_last ? 1 : p.side * p.side;
  const bool is_dense =
      (p.batch <= 1 || out.stride(0) == values) && out.stride(1) == plane &&
      (p.side == 1 || (out.stride(2) == p.side * pixel && out.stride(3) == pixel));
  STD_TORCH_CHECK(
      p.batch == 0 || is_dense, "augment_batch: expected a result of NCHW or channels last");
  return p;
}

}  // namespace augment_batch
