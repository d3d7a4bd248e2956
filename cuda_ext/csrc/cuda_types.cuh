// Types in memory and the types that kernels compute in.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace cuda_types {

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T, typename A>
__device__ inline T narrow(A value) {
  return value;
}
template <>
__device__ inline __half narrow(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow(float value) {
  return __float2bfloat16_rn(value);
}

}  // namespace cuda_types
