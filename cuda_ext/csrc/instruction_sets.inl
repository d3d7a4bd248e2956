// The loops of the file that REPLICA_LOOPS names, once for each instruction set: any processor,
// AVX2, AVX-512 without and with its bfloat16 instructions. Include it in a namespace without a
// name, where BFloat16 and Half are known.

#include "vectors_any.inl"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own header for AVX-512

namespace any_cpu {
using Floats = Scalar<float>;
template <typename T>
using PaperVector = Floats;
#include REPLICA_LOOPS
}  // namespace any_cpu

#if REPLICA_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#include "vectors_avx2.inl"
//
#include REPLICA_LOOPS
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prefer-vector-width=512")
#define REPLICA_BF16 0
namespace avx512 {
#include "vectors_avx512.inl"
//
#include REPLICA_LOOPS
}  // namespace avx512
#undef REPLICA_BF16
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prefer-vector-width=512")
#define REPLICA_BF16 1
namespace avx512_bf16 {
#include "vectors_avx512.inl"
//
#include REPLICA_LOOPS
}  // namespace avx512_bf16
#undef REPLICA_BF16
#pragma GCC pop_options
#endif

#pragma GCC diagnostic pop
