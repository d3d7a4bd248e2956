// Gives the kernel of augment_batch.cuh to PyTorch, through its stable C++ API.

#include "augment_batch.cuh"
#include "augment_batch_host.h"
#include "cuda_launch.cuh"

namespace {

using namespace augment_batch;

template <typename T>
const T* read(const Optional& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

void augment(
    const Tensors& images, const Tensor& places, const Optional& mean_image, const Optional& shifts,
    Tensor out, bool, bool is_central, double divisor) {
  STD_TORCH_CHECK(
      images.size() == 1, "augment_batch: expected one tensor of images on a GPU, got ",
      images.size());
  const Problem p = problem_of(images, places, mean_image, shifts, out, is_central, divisor);
  if (p.batch == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  const Launch launch("augment_batch", out);
  const auto with_type = [&]<typename T>(T) {
    augment_batch_cuda::launch_augment_batch(
        read<uint8_t>(images[0]), read<Place>(places), read<float>(mean_image), read<float>(shifts),
        p, static_cast<T*>(out.mutable_data_ptr()), launch);
  };
  switch (out.scalar_type()) {
    case ScalarType::Byte:
      return with_type(uint8_t{});
    case ScalarType::BFloat16:
      return with_type(__nv_bfloat16{});
    default:
      return with_type(float{});
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(replica, CUDA, m) { m.impl("augment_batch_", TORCH_BOX(&augment)); }
