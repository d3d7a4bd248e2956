// The 2012 source's normalization between neighbors in one map on the CPU, forward and backward.
// Schemas, shape functions and gradients are in same_map_norm.py.

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
#include "same_map_norm_host.h"

namespace {

using namespace same_map_norm;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

#define REPLICA_LOOPS "same_map_norm_kernels.inl"
#include "instruction_sets.inl"

template <typename T, typename A>
void run_on(const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out) {
  const auto p = problem_of<A>(x, letters);
  const auto* incoming = gradient ? static_cast<const T*>(gradient->const_data_ptr()) : nullptr;
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  // Four packed copies of 27 x 27 pixels are 370 kB: they stay in the second-level cache.
  constexpr int64_t kWidth = 32;
  const int64_t pieces = p.groups * ((p.channels + kWidth - 1) / kWidth);
  const auto normalize = REPLICA_IN_USE(T, normalize<T, A>);
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    normalize(incoming, input, p, begin, end, kWidth, output);
  });
}

void compute(const Tensor* gradient, const Tensor& x, const Letters& letters, const Tensor& out) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run_on<double, double>(gradient, x, letters, out);
    case ScalarType::BFloat16:
      return run_on<BFloat16, float>(gradient, x, letters, out);
    case ScalarType::Half:
      return run_on<Half, float>(gradient, x, letters, out);
    default:
      return run_on<float, float>(gradient, x, letters, out);
  }
}

}  // namespace

REPLICA_REGISTER_SAME_MAP_NORM(CPU, compute)
