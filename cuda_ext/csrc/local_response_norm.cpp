// Local response normalisation on the CPU (paper 3.3), forward and backward.
//
// One binary holds the loops three times, compiled for AVX-512, for AVX2 and for any processor;
// which of them run is decided when they run. The schema, the shape function and the gradient are
// in local_response_norm.py; the tensors that arrive here are dense and of one layout.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The paper's k, n, alpha, beta in the type of the computation; reach = n / 2.
template <typename T>
struct Window {
  int64_t reach;
  T k;
  T alpha;
  T beta;
  bool three_quarters;
};

namespace any_cpu {
#include "local_response_norm_kernels.inl"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REPLICA_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "local_response_norm_kernels.inl"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
namespace avx512 {
#include "local_response_norm_kernels.inl"
}
#pragma GCC pop_options
#else
#define REPLICA_X86 0
#endif

enum class Isa : int64_t { kAny = 0, kAvx2 = 1, kAvx512 = 2 };

Isa best_isa() {
#if REPLICA_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kAny;
}

// What runs: the best that the processor has, unless a test asked for less.
Isa isa_in_use = best_isa();

#if REPLICA_X86
#define REPLICA_DISPATCH(FUNCTION, ...)      \
  switch (isa_in_use) {                      \
    case Isa::kAvx512:                       \
      return avx512::FUNCTION(__VA_ARGS__);  \
    case Isa::kAvx2:                         \
      return avx2::FUNCTION(__VA_ARGS__);    \
    default:                                 \
      return any_cpu::FUNCTION(__VA_ARGS__); \
  }
#else
#define REPLICA_DISPATCH(FUNCTION, ...) return any_cpu::FUNCTION(__VA_ARGS__);
#endif

// How a tensor lies in memory: for each image either rows of channels or planes of pixels.
struct Layout {
  int64_t images;
  int64_t channels;  // of one tower
  int64_t towers;
  int64_t pixels;
  bool channels_last;
};

template <typename T>
void row(const T* gradient, const T* x, const Layout& l, const Window<T>& w, T* scratch, T* out) {
  if (gradient == nullptr) {
    REPLICA_DISPATCH(forward_row, x, l.channels, w, scratch, out)
  }
  REPLICA_DISPATCH(backward_row, gradient, x, l.channels, w, scratch, out)
}

template <typename T>
void planes(
    const T* gradient, const T* x, const Layout& l, const Window<T>& w, T* scratch, T* out) {
  if (gradient == nullptr) {
    REPLICA_DISPATCH(forward_planes, x, l.channels, l.pixels, w, scratch, out)
  }
  REPLICA_DISPATCH(backward_planes, gradient, x, l.channels, l.pixels, w, scratch, out)
}

// Forward where `gradient` is null, else backward.
template <typename T>
void run(const T* gradient, const T* x, const Layout& l, const Window<T>& w, T* out) {
  if (l.channels_last) {
    const int64_t width = l.towers * l.channels;
    constexpr int64_t kRowsPerThread = 64;  // some 25 kB of input: less is not worth a thread
    torch::stable::parallel_for(
        0, l.images * l.pixels, kRowsPerThread, [&](int64_t begin, int64_t end) {
          std::vector<T> scratch(4 * l.channels + 4 * w.reach, T(0));
          for (int64_t r = begin; r < end; ++r) {
            for (int64_t t = 0; t < l.towers; ++t) {
              const int64_t at = r * width + t * l.channels;
              row(gradient ? gradient + at : nullptr, x + at, l, w, scratch.data(), out + at);
            }
          }
        });
    return;
  }
  const int64_t size = l.channels * l.pixels;
  torch::stable::parallel_for(0, l.images * l.towers, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch((gradient ? 2 * l.channels + 1 : 1) * l.pixels);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * size;
      planes(gradient ? gradient + at : nullptr, x + at, l, w, scratch.data(), out + at);
    }
  });
}

template <typename T>
void run_on(
    const Tensor* gradient, const Tensor& x, const Tensor& out, const Layout& l, int64_t n,
    double k, double alpha, double beta) {
  const Window<T> w{
      n / 2, static_cast<T>(k), static_cast<T>(alpha), static_cast<T>(beta), beta == 0.75};
  run<T>(
      gradient ? static_cast<const T*>(gradient->const_data_ptr()) : nullptr,
      static_cast<const T*>(x.const_data_ptr()), l, w, static_cast<T*>(out.mutable_data_ptr()));
}

void check_and_run(
    const Tensor* gradient, const Tensor& x, const Tensor& out, int64_t n, double k, double alpha,
    double beta, int64_t towers, bool channels_last) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
      "local_response_norm: expected float32 or float64 in compiled code, got another type");
  STD_TORCH_CHECK(
      x.dim() >= 2 && out.numel() == x.numel() && out.scalar_type() == x.scalar_type(),
      "local_response_norm: expected an output like the input");
  if (x.numel() == 0) return;
  const int64_t channels = x.size(1) / towers;
  const Layout layout{
      x.size(0), channels, towers, x.numel() / (x.size(0) * x.size(1)), channels_last};
  // A window that is wider than a tower holds the whole tower and no more.
  const int64_t window = std::min(n, 2 * channels - 1);
  if (x.scalar_type() == ScalarType::Float) {
    run_on<float>(gradient, x, out, layout, window, k, alpha, beta);
  } else {
    run_on<double>(gradient, x, out, layout, window, k, alpha, beta);
  }
}

void forward_(
    const Tensor& x, const Tensor& out, int64_t n, double k, double alpha, double beta,
    int64_t towers, bool channels_last) {
  check_and_run(nullptr, x, out, n, k, alpha, beta, towers, channels_last);
}

void backward_(
    const Tensor& gradient, const Tensor& x, const Tensor& out, int64_t n, double k, double alpha,
    double beta, int64_t towers, bool channels_last) {
  check_and_run(&gradient, x, out, n, k, alpha, beta, towers, channels_last);
}

// Chooses the instruction set: 0 any processor, 1 AVX2, 2 AVX-512; -1 the best. Returns the choice.
int64_t set_isa(int64_t wanted) {
  const int64_t best = static_cast<int64_t>(best_isa());
  STD_TORCH_CHECK(
      wanted >= -1 && wanted <= best, "set_isa: expected -1 to ", best, " on this processor, got ",
      wanted);
  isa_in_use = static_cast<Isa>(wanted == -1 ? best : wanted);
  return static_cast<int64_t>(isa_in_use);
}

}  // namespace

STABLE_TORCH_LIBRARY(replica_cpu, m) {
  m.def(
      "local_response_norm_(Tensor x, Tensor(a!) out, int n, float k, float alpha, float beta, "
      "int towers, bool channels_last) -> ()");
  m.def(
      "local_response_norm_backward_(Tensor gradient, Tensor x, Tensor(a!) out, int n, float k, "
      "float alpha, float beta, int towers, bool channels_last) -> ()");
  m.def("set_isa(int wanted) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(replica_cpu, CPU, m) {
  m.impl("local_response_norm_", TORCH_BOX(&forward_));
  m.impl("local_response_norm_backward_", TORCH_BOX(&backward_));
}

STABLE_TORCH_LIBRARY_IMPL(replica_cpu, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&set_isa));
}
