// Neighbors in memory by one instruction, of up to 16 bytes, and 16-bit types two at a time.
#pragma once

#include <cstring>

#include "cuda_types.cuh"

namespace cuda_types {

constexpr int kVectorBytes = 16;  // the most that one instruction of a thread reads or writes

// Number of values in a vector.
template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// Two neighbors, and what so many bytes are read as.
template <typename T>
struct PairOf;
template <>
struct PairOf<float> {
  using Type = float2;
};
template <>
struct PairOf<__half> {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};
template <int kBytes>
struct WordOf;
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

__device__ inline float2 widen(float2 pair) { return pair; }
__device__ inline float2 widen(__half2 pair) { return __half22float2(pair); }
__device__ inline float2 widen(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
template <>
__device__ inline __half2 narrow(float2 pair) {
  return __float22half2_rn(pair);
}
template <>
__device__ inline __nv_bfloat162 narrow(float2 pair) {
  return __float22bfloat162_rn(pair);
}

// Reads kCount values that no kernel writes meanwhile; `from` is a multiple of their bytes.
template <int kCount, typename T>
__device__ inline void read_vector(const T* from, float* to) {
  using Pair = typename PairOf<T>::Type;
  using Word = typename WordOf<kCount* static_cast<int>(sizeof(T))>::Type;
  const Word word = __ldg(reinterpret_cast<const Word*>(from));
  Pair pairs[kCount / 2];
  static_assert(sizeof(pairs) == sizeof(word));
  memcpy(static_cast<void*>(pairs), &word, sizeof(word));
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 wide = widen(pairs[i]);
    to[2 * i] = wide.x;
    to[2 * i + 1] = wide.y;
  }
}

// Writes a whole vector; `to` is a multiple of its bytes.
template <typename T>
__device__ inline void write_vector(const float (&values)[kLanes<T>], T* to) {
  using Pair = typename PairOf<T>::Type;
  Pair pairs[kLanes<T> / 2];
#pragma unroll
  for (int i = 0; i < kLanes<T> / 2; ++i) {
    pairs[i] = narrow<Pair>(float2{values[2 * i], values[2 * i + 1]});
  }
  uint4 word;
  static_assert(sizeof(pairs) == sizeof(word));
  memcpy(&word, static_cast<const void*>(pairs), sizeof(word));
  __stwb(reinterpret_cast<uint4*>(to), word);
}

}  // namespace cuda_types
