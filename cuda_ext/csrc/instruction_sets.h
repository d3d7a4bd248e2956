// Which of the copies of the CPU's loops runs: one binary holds them for several instruction sets.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REPLICA_X86 1
#include <immintrin.h>
#else
#define REPLICA_X86 0
#endif

// A step for each of kCount vectors.
#define REPLICA_EACH _Pragma("GCC unroll 16") for (int i = 0; i < kCount; ++i)

namespace instruction_sets {

enum class Isa : int64_t { kAny = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

inline Isa best_isa() {
#if REPLICA_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kAny;
}

// What runs: the best that the processor has, unless a test asked for less.
inline Isa isa_in_use = best_isa();

}  // namespace instruction_sets

// The function of that name for the instruction set in use, for values of type T in memory. Only
// the bfloat16 instructions tell the two kinds of AVX-512 apart.
#if REPLICA_X86
#define REPLICA_IN_USE(T, ...)                                             \
  [] {                                                                     \
    using namespace instruction_sets;                                      \
    if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) {        \
      if (isa_in_use == Isa::kAvx512Bf16) return avx512_bf16::__VA_ARGS__; \
    }                                                                      \
    return isa_in_use >= Isa::kAvx512 ? avx512::__VA_ARGS__                \
           : isa_in_use == Isa::kAvx2 ? avx2::__VA_ARGS__                  \
                                      : any_cpu::__VA_ARGS__;              \
  }()
#else
#define REPLICA_IN_USE(T, ...) any_cpu::__VA_ARGS__
#endif
