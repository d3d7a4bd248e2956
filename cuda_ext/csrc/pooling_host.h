// What the CPU and the CUDA library do alike around pooling: checks, dense tensors, results. The
// checks have twins in max_pool2d.py and relu_lrn_pool.py; these serve callers of the registered
// operators.
#pragma once

#include <tuple>

#include "local_response_norm_host.h"
#include "pooling_problem.h"

namespace pooling {

using local_response_norm::Parameters;
using local_response_norm::Problem;
using local_response_norm::problem_of;
using tensor_checks::check_type;
using tensor_checks::format_of;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(const char* name, const Tensor& x, int64_t window, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4, name, ": expected x of (N, C, H, W), got ", x.dim(), " dimensions");
  check_type(name, x);
  STD_TORCH_CHECK(
      window >= 1 && window <= x.size(2) && window <= x.size(3), name,
      ": expected a window of 1 to the rows and columns of x, ", x.size(2), " and ", x.size(3),
      ", got ", window);
  STD_TORCH_CHECK(stride >= 1, name, ": expected a stride >= 1, got ", stride);
}

inline void check_alike(
    const char* name, const char* what, const Tensor& given, const Tensor& x, ScalarType type,
    int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(
      given.dim() == 4 && given.scalar_type() == type && given.is_cpu() == x.is_cpu() &&
          given.get_device() == x.get_device() && given.size(0) == x.size(0) &&
          given.size(1) == x.size(1) && given.size(2) == rows && given.size(3) == columns,
      name, ": expected ", what, " of the shape of the result, got another");
}

// The windows of a dense tensor. `is_last`: channels of a pixel lie together.
inline Windows windows_in(
    const Tensor& x, bool is_last, int64_t window, int64_t stride, bool all_ties) {
  const int64_t groups = is_last ? x.size(0) : x.size(0) * x.size(1);
  return {
      groups,
      is_last ? x.size(1) : 1,
      x.size(2),
      x.size(3),
      (x.size(2) - window) / stride + 1,
      (x.size(3) - window) / stride + 1,
      window,
      stride,
      all_ties};
}

// Of the windows of x, in the format of x.
inline Tensor pooled_like(const Tensor& x, ScalarType type, const Windows& w) {
  return torch::stable::empty(
      {x.size(0), x.size(1), w.out_rows, w.out_columns}, type, std::nullopt, x.device(),
      std::nullopt, format_of(x));
}

// A library's max_pool2d. `gradient` is null for the forward; out is the result.
using ComputeMaxPool =
    void(const Tensor* gradient, const Tensor& x, const Windows& w, const Tensor& out);

inline const char* const kMaxPool = "max_pool2d";

template <ComputeMaxPool* kCompute>
Tensor max_pool2d(const Tensor& x, int64_t window, int64_t stride, bool all_ties) {
  check(kMaxPool, x, window, stride);
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const bool is_last = format_of(x) != MemoryFormat::Contiguous;
  const Windows w = windows_in(x, is_last, window, stride, all_ties);
  const Tensor out = pooled_like(dense, x.scalar_type(), w);
  if (dense.numel() > 0) kCompute(nullptr, dense, w, out);
  return out;
}

template <ComputeMaxPool* kCompute>
Tensor max_pool2d_backward(
    const Tensor& gradient, const Tensor& x, int64_t window, int64_t stride, bool all_ties) {
  check(kMaxPool, x, window, stride);
  const bool is_last = format_of(x) != MemoryFormat::Contiguous;
  const Windows w = windows_in(x, is_last, window, stride, all_ties);
  check_alike(kMaxPool, "a gradient", gradient, x, x.scalar_type(), w.out_rows, w.out_columns);
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor dense_gradient = torch::stable::contiguous(gradient, format_of(x));
  const Tensor out = torch::stable::empty_like(dense);
  if (dense.numel() > 0) kCompute(&dense_gradient, dense, w, out);
  return out;
}

// A library's relu_lrn_pool, forward (winners is null where nobody wants them) and backward. There
// the windows' channels are all that lie together, of all towers.
struct Fused {
  Parameters parameters;
  Windows windows;
  bool relu_first;
};
using ComputeFused =
    void(const Tensor& x, const Fused& f, const Tensor& out, const Tensor* winners);
using ComputeFusedBackward = void(
    const Tensor& gradient, const Tensor& x, const Tensor& winners, const Fused& f,
    const Tensor& out);

inline const char* const kFused = "relu_lrn_pool";

inline Fused fused_of(
    const Tensor& x, const Parameters& parameters, int64_t window, int64_t stride, bool relu_first,
    bool all_ties) {
  check(kFused, x, window, stride);
  STD_TORCH_CHECK(
      window * window <= kMostPlaces, kFused, ": expected a window of 1 to 4, got ", window);
  local_response_norm::check(x, parameters);
  const int64_t pixels = x.size(2) * x.size(3);
  const bool is_last = format_of(x) != MemoryFormat::Contiguous || pixels == 1;
  return {parameters, windows_in(x, is_last, window, stride, all_ties), relu_first};
}

template <ComputeFused* kCompute>
std::tuple<Tensor, Tensor> relu_lrn_pool(
    const Tensor& x, int64_t n, double k, double alpha, double beta, int64_t towers, int64_t window,
    int64_t stride, bool relu_first, bool all_ties, bool keeps) {
  const Fused f = fused_of(x, {n, k, alpha, beta, towers}, window, stride, relu_first, all_ties);
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor out = pooled_like(dense, x.scalar_type(), f.windows);
  const Tensor winners = keeps ? pooled_like(dense, ScalarType::Short, f.windows)
                               : torch::stable::new_empty(dense, {0}, ScalarType::Short);
  if (dense.numel() > 0) kCompute(dense, f, out, keeps ? &winners : nullptr);
  return {out, winners};
}

template <ComputeFusedBackward* kCompute>
Tensor relu_lrn_pool_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& winners, int64_t n, double k,
    double alpha, double beta, int64_t towers, int64_t window, int64_t stride, bool relu_first) {
  const Fused f = fused_of(x, {n, k, alpha, beta, towers}, window, stride, relu_first, false);
  const auto [rows, columns] = std::pair(f.windows.out_rows, f.windows.out_columns);
  check_alike(kFused, "a gradient", gradient, x, x.scalar_type(), rows, columns);
  check_alike(kFused, "winners", winners, x, ScalarType::Short, rows, columns);
  const Tensor dense = torch::stable::contiguous(x, format_of(x));
  const Tensor out = torch::stable::empty_like(dense);
  if (dense.numel() > 0) {
    kCompute(
        torch::stable::contiguous(gradient, format_of(x)), dense,
        torch::stable::contiguous(winners, format_of(x)), f, out);
  }
  return out;
}

}  // namespace pooling

// In the file of a library: registers its kernels for a dispatch key.
#define REPLICA_REGISTER_POOLING(KEY, MAX_POOL, FUSED, FUSED_BACKWARD)                           \
  STABLE_TORCH_LIBRARY_IMPL(replica, KEY, m) {                                                   \
    m.impl("max_pool2d", TORCH_BOX(&pooling::max_pool2d<&MAX_POOL>));                            \
    m.impl("max_pool2d_backward", TORCH_BOX(&pooling::max_pool2d_backward<&MAX_POOL>));          \
    m.impl("relu_lrn_pool", TORCH_BOX(&pooling::relu_lrn_pool<&FUSED>));                         \
    m.impl(                                                                                      \
        "relu_lrn_pool_backward", TORCH_BOX(&pooling::relu_lrn_pool_backward<&FUSED_BACKWARD>)); \
  }
