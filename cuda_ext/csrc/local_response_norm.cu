// Gives the kernels of local_response_norm.cuh to PyTorch, through its stable C++ API.

#include "cuda_launch.cuh"
#include "local_response_norm.cuh"
#include "local_response_norm_host.h"

namespace {

using namespace local_response_norm;
namespace cuda = local_response_norm_cuda;

template <typename T, typename A>
void run_on(
    const Tensor* gradient, const Tensor& x, const Parameters& parameters, const Tensor& out,
    const Launch& launch) {
  const auto p = problem_of<A>(x, parameters);
  const T* input = static_cast<const T*>(x.const_data_ptr());
  T* output = static_cast<T*>(out.mutable_data_ptr());
  if (gradient == nullptr) {
    cuda::launch_forward(input, p, output, launch);
    return;
  }
  const T* incoming = static_cast<const T*>(gradient->const_data_ptr());
  const Tensor terms = torch::stable::new_empty(
      x, {cuda::needs_terms(p) ? x.numel() : 0},
      std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
  cuda::launch_backward(
      incoming, input, p, static_cast<A*>(terms.mutable_data_ptr()), output, launch);
}

void compute(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Launch launch("local_response_norm", x);
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run_on<double, double>(gradient, x, p, out, launch);
    case ScalarType::BFloat16:
      return run_on<__nv_bfloat16, float>(gradient, x, p, out, launch);
    case ScalarType::Half:
      return run_on<__half, float>(gradient, x, p, out, launch);
    default:
      return run_on<float, float>(gradient, x, p, out, launch);
  }
}

}  // namespace

REPLICA_REGISTER_LOCAL_RESPONSE_NORM(CUDA, compute)

// With the architectures that nvcc compiled for.
extern "C" const char* replica_built_for() {
  return "by nvcc " REPLICA_TEXT(__CUDACC_VER_MAJOR__) "." REPLICA_TEXT(
      __CUDACC_VER_MINOR__) " for PyTorch 2.11 and later, architectures " REPLICA_TEXT(__CUDA_ARCH_LIST__);
}
