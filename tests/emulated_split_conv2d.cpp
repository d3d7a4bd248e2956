// The GPU kernels of the split convolution as a library for a CPU: for ctypes.
#include "cuda_emulation.h"
//
#include KERNELS  // cuda_ext/csrc/split_conv2d.cuh, or a copy with an error in it

namespace split_conv2d_cuda {
// The shared memory that the kernels declare.
alignas(16) unsigned char shared_memory[2 * emulation::kSharedBytes];
}  // namespace split_conv2d_cuda

namespace {

using namespace split_conv2d_cuda;

template <typename Factors>
void run(const Factors& factors, const End& end, float* out, unsigned seed, bool only_last) {
  const auto launch = [&](auto... arguments) {
    emulation::launch(shared_memory, seed, only_last, arguments...);
  };
  const Shape shape = shape_of(factors);
  std::vector<float> partial(partial_size(shape), std::numeric_limits<float>::quiet_NaN());
  launch_product(factors, shape, end, partial.data(), out, launch);
}

}  // namespace

// `product`: 0 y of x and weight, 1 dx of a gradient and weight, 2 dweight of a gradient and x.
// `numbers`: the counts of Problem, then three times four strides.
extern "C" const char* emulated_split_conv2d(
    int64_t product, const float* one, const float* other, const float* bias,
    const int64_t* numbers, int64_t adds, int64_t relu, float* out, int64_t seed,
    int64_t only_last) {
  static_assert(sizeof(Problem) == 24 * sizeof(int64_t));
  Problem p;
  std::memcpy(&p, numbers, sizeof(p));
  const End end{bias, adds != 0, relu != 0};
  return emulation::problem_in([&] {
    if (product == 0) run(Forward{p, one, other}, end, out, seed, only_last);
    if (product == 1) run(DataGradient{p, one, other}, end, out, seed, only_last);
    if (product == 2) run(WeightGradient{p, one, other}, end, out, seed, only_last);
  });
}

// Of n below 2^31, for every divisor: the first that is wrong, or -1.
extern "C" int64_t emulated_quotient(const uint32_t* values, int64_t count, int64_t divisor) {
  const Divisor by = Divisor::of(divisor);
  for (int64_t i = 0; i < count; ++i) {
    if (quotient(values[i], by) != values[i] / divisor) return values[i];
  }
  return -1;
}

extern "C" int64_t emulated_parts(int64_t product, const int64_t* numbers) {
  Problem p;
  std::memcpy(&p, numbers, sizeof(p));
  if (product == 0) return shape_of(Forward{p, nullptr, nullptr}).parts;
  if (product == 1) return shape_of(DataGradient{p, nullptr, nullptr}).parts;
  return shape_of(WeightGradient{p, nullptr, nullptr}).parts;
}
