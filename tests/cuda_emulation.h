// Runs CUDA kernels on a CPU: what a kernel file of cuda_ext/csrc needs of CUDA, in ordinary C++.
//
// Include this first, then the .cuh file, then call emulation::launch. One fiber is one CUDA
// thread. The threads of a block run one after another, each to its next barrier, in an order that
// a seed permutes anew at each barrier; blocks run in a permuted order, too. So a thread that reads
// what another one has not written yet, for want of a barrier, finds it unwritten in some order:
// shared memory holds NaN before a block begins. A thread that ends, or waits at another barrier,
// while others wait is an error, as is a write beyond the shared memory that the launch asked for,
// and a vector whose address is not a multiple of its bytes.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __align__(n)
#define __syncthreads() emulation::barrier(__LINE__)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(int64_t x_, int64_t y_ = 1, int64_t z_ = 1)
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
};

// Of the thread that runs.
inline dim3 threadIdx(0), blockIdx(0), blockDim(0), gridDim(0);

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  _Float16 value;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct __half2 {
  __half x, y;
};
struct float2 {
  float x, y;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float __bfloat162float(__nv_bfloat16 from) {
  return std::bit_cast<float>(static_cast<uint32_t>(from.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float from) {
  if (std::isnan(from)) return {0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(from);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half from) { return static_cast<float>(from.value); }
inline __half __float2half_rn(float from) { return {static_cast<_Float16>(from)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 from) {
  return {__bfloat162float(from.x), __bfloat162float(from.y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 from) {
  return {__float2bfloat16_rn(from.x), __float2bfloat16_rn(from.y)};
}
inline float2 __half22float2(__half2 from) { return {__half2float(from.x), __half2float(from.y)}; }
inline __half2 __float22half2_rn(float2 from) {
  return {__float2half_rn(from.x), __float2half_rn(from.y)};
}

#define rsqrtf emulation_rsqrtf  // some C libraries have one, too
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
using std::isinf;
using std::max;
using std::min;

namespace emulation {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kSharedBytes = 48 * 1024;
constexpr unsigned char kNothing = 0xff;  // four of these are NaN

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  dim3 index{0};
  bool is_done = false;
  int barrier = 0;  // line of the barrier at which it waits, 0 before the first
};

inline ucontext_t scheduler;
inline Fiber* running = nullptr;
inline std::function<void()> work;

// Of all launches: vectors of 16 bytes that were read, and the bytes of one that began badly.
inline int64_t num_vectors_read = 0;
inline size_t misplaced = 0;

inline void check_place(const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) misplaced = bytes;
}

inline void barrier(int line) {
  running->barrier = line;
  swapcontext(&running->context, &scheduler);
}

inline void run_fiber() {
  work();
  running->is_done = true;
  swapcontext(&running->context, &scheduler);
}

// One block; `shared` is the memory that the kernel sees, of kSharedBytes and a margin.
inline void run_block(dim3 block, size_t shared_bytes, unsigned char* shared, std::mt19937& order) {
  static std::vector<std::unique_ptr<Fiber>> fibers;
  const size_t count = size_t{block.x} * block.y * block.z;
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    fiber.index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    fiber.is_done = false;
    fiber.barrier = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::memset(shared, kNothing, 2 * kSharedBytes);
  std::vector<size_t> turns(count);
  std::iota(turns.begin(), turns.end(), 0);
  while (true) {
    std::shuffle(turns.begin(), turns.end(), order);
    for (const size_t i : turns) {
      running = fibers[i].get();
      threadIdx = running->index;
      swapcontext(&scheduler, &running->context);
    }
    const auto same = [&](size_t i) {
      return fibers[i]->is_done == fibers[0]->is_done &&
             (fibers[i]->is_done || fibers[i]->barrier == fibers[0]->barrier);
    };
    for (size_t i = 1; i < count; ++i) {
      if (!same(i)) {
        throw std::runtime_error(
            "thread " + std::to_string(i) + " of a block misses the barrier at which others wait");
      }
    }
    if (fibers[0]->is_done) break;
  }
  if (misplaced != 0) {
    const auto bytes = std::to_string(std::exchange(misplaced, 0));
    throw std::runtime_error("a vector of " + bytes + " bytes begins between two of its places");
  }
  for (size_t i = shared_bytes; i < 2 * kSharedBytes; ++i) {
    if (shared[i] != kNothing) {
      throw std::runtime_error(
          "a block wrote byte " + std::to_string(i) + " of its shared memory, and asked for " +
          std::to_string(shared_bytes));
    }
  }
}

// Runs blocks of kernel<<<grid, block, shared_bytes>>>(arguments...): all of them, or with
// `only_last` the last one, for problems that are too large to run whole.
template <typename... Parameters, typename... Arguments>
void launch(
    unsigned char* shared, unsigned seed, bool only_last, void (*kernel)(Parameters...),
    unsigned grid, dim3 block, size_t shared_bytes, Arguments... arguments) {
  if (grid == 0 || size_t{block.x} * block.y * block.z > 1024 || shared_bytes > kSharedBytes) {
    throw std::runtime_error("a launch that no device accepts");
  }
  std::mt19937 order(seed);
  blockDim = block;
  gridDim = dim3(grid);
  work = [&] { kernel(arguments...); };
  std::vector<unsigned> turns(only_last ? 1 : grid, grid - 1);
  if (!only_last) std::iota(turns.begin(), turns.end(), 0);
  std::shuffle(turns.begin(), turns.end(), order);
  for (const unsigned turn : turns) {
    blockIdx = dim3(turn);
    run_block(block, shared_bytes, shared, order);
  }
}

// For the drivers that ctypes calls: their arguments are pointers, int64_t and double alone.

// Calls body(T{}, A{}): `type` is 0 for float32, 1 float64, 2 bfloat16, 3 float16 in memory.
inline void with_types(int64_t type, auto body) {
  if (type == 0) body(float{}, float{});
  if (type == 1) body(double{}, double{});
  if (type == 2) body(__nv_bfloat16{}, float{});
  if (type == 3) body(__half{}, float{});
}

// Null where all went well, else what went wrong.
inline const char* problem_in(auto body) {
  static std::string message;
  try {
    body();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

}  // namespace emulation

template <typename Word>
Word __ldg(const Word* from) {
  emulation::check_place(from, sizeof(Word));
  emulation::num_vectors_read += sizeof(Word) == 16;
  Word word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}
template <typename Word>
void __stwb(Word* to, Word word) {
  emulation::check_place(to, sizeof(Word));
  std::memcpy(to, &word, sizeof(word));
}
