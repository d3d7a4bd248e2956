// Gives the kernel of philox_dropout.cuh to PyTorch, through its stable C++ API.

#include "cuda_launch.cuh"
#include "philox_dropout.cuh"
#include "philox_dropout_host.h"

namespace {

using namespace philox_dropout;

template <typename T>
void run(const Tensor& x, const Problem& p, const Tensor& step, const Tensor& rows, Tensor& out) {
  philox_dropout_cuda::launch_dropout(
      static_cast<const T*>(x.const_data_ptr()), static_cast<const int64_t*>(step.const_data_ptr()),
      static_cast<const int64_t*>(rows.const_data_ptr()), p,
      static_cast<T*>(out.mutable_data_ptr()), Launch("philox_dropout", x));
}

void compute(
    const Tensor& x, const Problem& p, const Tensor& step, const Tensor& rows, Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run<double>(x, p, step, rows, out);
    case ScalarType::BFloat16:
      return run<__nv_bfloat16>(x, p, step, rows, out);
    case ScalarType::Half:
      return run<__half>(x, p, step, rows, out);
    default:
      return run<float>(x, p, step, rows, out);
  }
}

}  // namespace

REPLICA_REGISTER_PHILOX_DROPOUT(CUDA, compute)
