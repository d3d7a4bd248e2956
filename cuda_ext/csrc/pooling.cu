// Gives the kernels of pooling.cuh to PyTorch, through its stable C++ API.

#include "cuda_launch.cuh"
#include "pooling.cuh"
#include "pooling_host.h"

namespace {

using namespace pooling;

// Calls body(T{}, A{}) with the type of x and that of sums.
void with_types(const Tensor& x, auto body) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return body(double{}, double{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{}, float{});
    case ScalarType::Half:
      return body(__half{}, float{});
    default:
      return body(float{}, float{});
  }
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* written(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void compute_max_pool(
    const Tensor* gradient, const Tensor& x, const Windows& w, const Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Launch launch(kMaxPool, x);
  with_types(x, [&]<typename T, typename A>(T, A) {
    if (gradient == nullptr) {
      pooling_cuda::launch_max_pool<T, A>(read<T>(x), w, written<T>(out), launch);
    } else {
      pooling_cuda::launch_max_pool_backward<T, A>(
          read<T>(*gradient), read<T>(x), w, written<T>(out), launch);
    }
  });
}

void compute_fused(const Tensor& x, const Fused& f, const Tensor& out, const Tensor* winners) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Launch launch(kFused, x);
  with_types(x, [&]<typename T, typename A>(T, A) {
    pooling_cuda::launch_fused<T, A>(
        read<T>(x), problem_of<A>(x, f.parameters), f.windows, f.relu_first, written<T>(out),
        winners ? written<int16_t>(*winners) : nullptr, launch);
  });
}

void compute_fused_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& winners, const Fused& f,
    const Tensor& out) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Launch launch(kFused, x);
  with_types(x, [&]<typename T, typename A>(T, A) {
    const auto p = problem_of<A>(x, f.parameters);
    const Tensor terms = torch::stable::new_empty(
        x, {local_response_norm_cuda::needs_terms(p) ? x.numel() : 0},
        std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    const pooling_cuda::Pooled<T, A> pooled{read<T>(gradient), read<int16_t>(winners), f.windows};
    const auto start = [&]<bool kReluFirst>() {
      pooling_cuda::launch_fused_backward<kReluFirst>(
          pooled, read<T>(x), p, written<A>(terms), written<T>(out), launch);
    };
    f.relu_first ? start.template operator()<true>() : start.template operator()<false>();
  });
}

}  // namespace

REPLICA_REGISTER_POOLING(CUDA, compute_max_pool, compute_fused, compute_fused_backward)
