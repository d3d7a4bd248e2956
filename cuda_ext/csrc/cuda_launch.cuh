// How a kernel is started: on the stream that PyTorch works on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

// Starts the kernels of an operator for tensors beside x, and says at once where that fails.
class Launch {
 public:
  Launch(const char* name, const torch::stable::Tensor& x) : name_(name) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(
      void (*kernel)(Parameters...), unsigned grid, dim3 block, size_t shared_bytes,
      Arguments... arguments) const {
    kernel<<<grid, block, shared_bytes, stream_>>>(arguments...);
    const cudaError_t status = cudaGetLastError();
    STD_TORCH_CHECK(
        status == cudaSuccess, name_,
        ": the CUDA kernel did not start: ", cudaGetErrorString(status));
  }

 private:
  const char* name_;
  cudaStream_t stream_;
};
