// Gives the kernels of same_map_norm.cuh to PyTorch, through its stable C++ API.

#include "cuda_launch.cuh"
#include "same_map_norm.cuh"
#include "same_map_norm_host.h"

namespace {

using namespace same_map_norm;
namespace cuda = same_map_norm_cuda;

template <typename T, typename A>
void run_on(
    const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out,
    const Launch& launch) {
  const auto p = problem_of<A>(x, letters);
  const T* input = static_cast<const T*>(x.const_data_ptr());
  T* output = static_cast<T*>(out.mutable_data_ptr());
  if (gradient == nullptr) {
    cuda::launch_forward(input, p, output, launch);
    return;
  }
  const Tensor terms = torch::stable::new_empty(
      x, {x.numel()}, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  cuda::launch_backward(
      static_cast<const T*>(gradient->const_data_ptr()), input, p,
      static_cast<A*>(terms.mutable_data_ptr()), output, launch);
}

void compute(const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Launch launch("same_map_norm", x);
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run_on<double, double>(gradient, x, letters, out, launch);
    case ScalarType::BFloat16:
      return run_on<__nv_bfloat16, float>(gradient, x, letters, out, launch);
    case ScalarType::Half:
      return run_on<__half, float>(gradient, x, letters, out, launch);
    default:
      return run_on<float, float>(gradient, x, letters, out, launch);
  }
}

}  // namespace

REPLICA_REGISTER_SAME_MAP_NORM(CUDA, compute)
