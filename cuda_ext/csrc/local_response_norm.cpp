// Local response normalization on the CPU (paper 3.3), forward and backward.
//
// One binary holds the loops of local_response_norm_kernels.inl four times, compiled for AVX-512
// with and without its bfloat16 instructions, for AVX2 and for any processor; which of them run is
// decided when they run. Schemas, shape functions and gradients are in local_response_norm.py.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "instruction_sets.h"
#include "local_response_norm_host.h"

namespace {

using namespace local_response_norm;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

#define REPLICA_LOOPS "local_response_norm_kernels.inl"
#include "instruction_sets.inl"

// Number of pixels that one piece of work has, of planes. Whole planes are read fastest (blocks of
// 1,024 pixels took 1.1 times as long); larger ones than 4,096 pixels leave the second-level cache,
// and with few images there must be a piece for each thread.
template <typename A>
int64_t pixels_at_once(const Problem<A>& p) {
  constexpr int64_t kMost = 4096, kLeast = 256;
  const int64_t wanted = 2 * torch::stable::get_num_threads();  // pieces
  const int64_t pieces = std::max(
      (p.pixels + kMost - 1) / kMost,
      std::min(wanted / p.groups, (p.pixels + kLeast - 1) / kLeast));
  return (p.pixels + pieces - 1) / pieces;
}

template <bool kBackward, typename T, typename A>
void run(const T* gradient, const T* x, const Problem<A>& p, T* out) {
  const auto shifted = [&](int64_t at) { return kBackward ? gradient + at : nullptr; };
  if (p.is_rows) {
    constexpr int64_t kRowsPerThread = 64;  // some 25 kB of input: less is not worth a thread
    const auto rows = REPLICA_IN_USE(T, rows<kBackward, false, T, T, A>);
    torch::stable::parallel_for(
        0, p.groups * p.pixels, kRowsPerThread, [&](int64_t begin, int64_t end) {
          const int64_t at = begin * p.channels;
          rows(shifted(at), x + at, end - begin, p, out + at);
        });
    return;
  }
  const int64_t size = pixels_at_once(p);
  const int64_t pieces = (p.pixels + size - 1) / size;
  const auto planes = REPLICA_IN_USE(T, planes<kBackward, false, T, T, A>);
  torch::stable::parallel_for(0, p.groups * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * size;
      const int64_t last = std::min(first + size, p.pixels);
      const int64_t at = i / pieces * p.channels * p.pixels + first;
      planes(shifted(at), p.pixels, x + at, p, last - first, scratch, out + at, p.pixels);
    }
  });
}

template <typename T, typename A>
void run_on(
    const Tensor* gradient, const Tensor& x, const Parameters& parameters, const Tensor& out) {
  const auto p = problem_of<A>(x, parameters);
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  if (!gradient) return run<false, T>(nullptr, input, p, output);
  run<true>(static_cast<const T*>(gradient->const_data_ptr()), input, p, output);
}

void compute(const Tensor* gradient, const Tensor& x, const Parameters& p, const Tensor& out) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run_on<double, double>(gradient, x, p, out);
    case ScalarType::BFloat16:
      return run_on<BFloat16, float>(gradient, x, p, out);
    case ScalarType::Half:
      return run_on<Half, float>(gradient, x, p, out);
    default:
      return run_on<float, float>(gradient, x, p, out);
  }
}

// Chooses the instruction set: an Isa, or -1 for the best. Returns the choice.
int64_t set_isa(int64_t wanted) {
  using namespace instruction_sets;
  const int64_t best = static_cast<int64_t>(best_isa());
  STD_TORCH_CHECK(
      wanted >= -1 && wanted <= best, "set_isa: expected -1 to ", best, " on this processor, got ",
      wanted);
  isa_in_use = static_cast<Isa>(wanted == -1 ? best : wanted);
  return static_cast<int64_t>(isa_in_use);
}

}  // namespace

STABLE_TORCH_LIBRARY(replica_cpu, m) { m.def("set_isa(int wanted) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(replica_cpu, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&set_isa));
}

REPLICA_REGISTER_LOCAL_RESPONSE_NORM(CPU, compute)

extern "C" const char* replica_built_for() {
#if REPLICA_X86
  return "by GCC " REPLICA_TEXT(__GNUC__) "." REPLICA_TEXT(
      __GNUC_MINOR__) " for PyTorch 2.11 and later, any x86-64 processor, AVX2 and AVX-512";
#else
  return "for PyTorch 2.11 and later, this kind of processor";
#endif
}
