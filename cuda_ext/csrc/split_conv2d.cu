// Gives the kernels of split_conv2d.cuh to PyTorch, through its stable C++ API.
//
// Schemas of the operators that call these, and their checks, are in split_conv2d.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "cuda_launch.cuh"
#include "split_conv2d.cuh"

namespace {

using namespace split_conv2d_cuda;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(
      tensor.dim() == 4 && tensor.scalar_type() == ScalarType::Float &&
          tensor.get_device() == x.get_device() && tensor.is_cuda(),
      "split_conv2d: expected ", name,
      " of four dimensions in float32 on one CUDA device, got another");
}

Strides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

Problem problem_of(
    const Tensor& x, const Tensor& weight, const Tensor& y, int64_t stride, int64_t before,
    int64_t towers) {
  check(x, x, "x");
  check(weight, x, "a weight");
  check(y, x, "y");
  STD_TORCH_CHECK(
      towers >= 1 && stride >= 1 && weight.size(0) % towers == 0 &&
          x.size(1) == towers * weight.size(1) && y.size(1) == weight.size(0) &&
          y.size(0) == x.size(0),
      "split_conv2d: expected tensors that fit each other and ", towers, " towers, got others");
  return {x.size(0), x.size(2),      x.size(3),      weight.size(1), weight.size(0) / towers,
          towers,    weight.size(2), weight.size(3), stride,         before,
          y.size(2), y.size(3),      strides_of(x),  strides_of(y),  strides_of(weight)};
}

const float* values(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

template <typename Factors>
void run(const Factors& factors, const End& end, Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  const Shape shape = shape_of(factors);
  Tensor partial = torch::stable::new_empty(out, {partial_size(shape)});
  launch_product(
      factors, shape, end, static_cast<float*>(partial.mutable_data_ptr()),
      static_cast<float*>(out.mutable_data_ptr()), Launch("split_conv2d", out));
}

void forward(
    Tensor y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    int64_t stride, int64_t before, int64_t towers, bool relu, bool adds) {
  const Problem p = problem_of(x, weight, y, stride, before, towers);
  STD_TORCH_CHECK(
      !bias || (bias->is_contiguous() && bias->numel() == weight.size(0) &&
                bias->scalar_type() == ScalarType::Float && bias->get_device() == x.get_device()),
      "split_conv2d: expected a bias in float32 for each kernel, got another");
  run(Forward{p, values(x), values(weight)}, {bias ? values(*bias) : nullptr, adds, relu}, y);
}

void data_gradient(
    Tensor of_x, const Tensor& gradient, const Tensor& weight, int64_t stride, int64_t before,
    int64_t towers) {
  const Problem p = problem_of(of_x, weight, gradient, stride, before, towers);
  run(DataGradient{p, values(gradient), values(weight)}, {nullptr, false, false}, of_x);
}

void weight_gradient(
    Tensor of_weight, const Tensor& gradient, const Tensor& x, int64_t stride, int64_t before,
    int64_t towers) {
  const Problem p = problem_of(x, of_weight, gradient, stride, before, towers);
  run(WeightGradient{p, values(gradient), values(x)}, {nullptr, false, false}, of_weight);
}

}  // namespace

STABLE_TORCH_LIBRARY(replica_cuda, m) {
  m.def(
      "split_conv2d(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, int stride, int before, "
      "int towers, bool relu, bool adds) -> ()");
  m.def(
      "split_conv2d_data_gradient(Tensor(a!) of_x, Tensor gradient, Tensor weight, int stride, "
      "int before, int towers) -> ()");
  m.def(
      "split_conv2d_weight_gradient(Tensor(a!) of_weight, Tensor gradient, Tensor x, int stride, "
      "int before, int towers) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(replica_cuda, CUDA, m) {
  m.impl("split_conv2d", TORCH_BOX(&forward));
  m.impl("split_conv2d_data_gradient", TORCH_BOX(&data_gradient));
  m.impl("split_conv2d_weight_gradient", TORCH_BOX(&weight_gradient));
}
