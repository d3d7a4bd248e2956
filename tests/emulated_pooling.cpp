// The GPU kernels of pooling as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/pooling.cuh, or a copy with an error in it

namespace local_response_norm_cuda {
// The shared memory that the kernels declare.
alignas(16) unsigned char shared_memory[2 * emulation::kSharedBytes];
}  // namespace local_response_norm_cuda

namespace {

using namespace pooling_cuda;

struct Call {
  const void *gradient, *x;
  int16_t* winners;
  void* out;
  int64_t images, channels, rows, columns;
  bool is_last;
  int64_t window, stride;
  bool all_ties, relu_first;
  int64_t n;
  double k, alpha, beta;
  int64_t towers;
  unsigned seed;
};

// What pooling_host.h makes of a tensor.
Windows windows_of_call(const Call& c) {
  return {
      c.is_last ? c.images : c.images * c.channels,
      c.is_last ? c.channels : 1,
      c.rows,
      c.columns,
      (c.rows - c.window) / c.stride + 1,
      (c.columns - c.window) / c.stride + 1,
      c.window,
      c.stride,
      c.all_ties};
}

template <typename T, typename A>
void run(const Call& c) {
  const auto launch = [&](auto... arguments) {
    emulation::launch(local_response_norm_cuda::shared_memory, c.seed, false, arguments...);
  };
  const Windows w = windows_of_call(c);
  const T* x = static_cast<const T*>(c.x);
  const T* gradient = static_cast<const T*>(c.gradient);
  T* out = static_cast<T*>(c.out);
  if (c.n == 0) {  // max_pool2d
    if (gradient) return launch_max_pool_backward<T, A>(gradient, x, w, out, launch);
    return launch_max_pool<T, A>(x, w, out, launch);
  }
  const int64_t channels = c.channels / c.towers;
  const Problem<A> p{
      c.images * c.towers,
      channels,
      c.rows * c.columns,
      c.is_last,
      std::min(c.n / 2, channels - 1),
      static_cast<A>(c.k),
      static_cast<A>(c.alpha),
      static_cast<A>(c.beta),
      c.beta == 0.75};
  if (!gradient) return launch_fused<T, A>(x, p, w, c.relu_first, out, c.winners, launch);
  std::vector<A> terms(
      local_response_norm_cuda::needs_terms(p) ? c.images * c.channels * c.rows * c.columns : 0,
      std::numeric_limits<A>::quiet_NaN());
  const Pooled<T, A> pooled{gradient, c.winners, w};
  if (c.relu_first) {
    launch_fused_backward<true>(pooled, x, p, terms.data(), out, launch);
  } else {
    launch_fused_backward<false>(pooled, x, p, terms.data(), out, launch);
  }
}

}  // namespace

// n = 0: max_pool2d.
extern "C" const char* emulated_pooling(
    int64_t type, const void* gradient, const void* x, int16_t* winners, void* out, int64_t images,
    int64_t channels, int64_t rows, int64_t columns, int64_t is_last, int64_t window,
    int64_t stride, int64_t all_ties, int64_t relu_first, int64_t n, double k, double alpha,
    double beta, int64_t towers, int64_t seed) {
  const Call call{
      gradient,
      x,
      winners,
      out,
      images,
      channels,
      rows,
      columns,
      is_last != 0,
      window,
      stride,
      all_ties != 0,
      relu_first != 0,
      n,
      k,
      alpha,
      beta,
      towers,
      static_cast<unsigned>(seed)};
  return emulation::problem_in(
      [&] { emulation::with_types(type, [&]<typename T, typename A>(T, A) { run<T, A>(call); }); });
}
