// What the split convolution adds to the library's products on the CPU (paper 3.5): images in
// blocks of pixels, and the end of a layer whose products come in two halves.
//
// Schemas of the operators that call these, and their checks, are in split_conv2d.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_channels_last(const Tensor& x) {
  return x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

// --- Blocks of pixels

struct Image {
  int64_t channels, height, width;
  int64_t side;           // of a block, in pixels
  int64_t before;         // rows and columns of zeros before the first
  int64_t rows, columns;  // blocks
};

// One row of blocks of an image whose pixels' channels lie together: those of a block lie together,
// too, row by row of its pixels.
template <typename T>
void row_of_last(const T* x, const Image& image, int64_t row, T* out) {
  const int64_t run = image.side * image.channels;  // one row of a block's pixels
  for (int64_t i = 0; i < image.side; ++i) {
    const int64_t h = row * image.side + i - image.before;
    for (int64_t column = 0; column < image.columns; ++column) {
      T* target = out + (column * image.side + i) * run;
      const int64_t w = column * image.side - image.before;
      const int64_t first = std::clamp<int64_t>(-w, 0, image.side);
      const int64_t last = std::clamp<int64_t>(image.width - w, first, image.side);
      if (h < 0 || h >= image.height || first == last) {
        std::fill_n(target, run, T(0));
        continue;
      }
      std::fill_n(target, first * image.channels, T(0));
      std::memcpy(
          target + first * image.channels, x + (h * image.width + w + first) * image.channels,
          (last - first) * image.channels * sizeof(T));
      std::fill_n(target + last * image.channels, (image.side - last) * image.channels, T(0));
    }
  }
}

// The plane of one channel of the blocks, pixel (i, j) of each block, from the plane of a channel.
template <typename T>
void plane(const T* x, const Image& image, int64_t i, int64_t j, T* out) {
  for (int64_t row = 0; row < image.rows; ++row) {
    const int64_t h = row * image.side + i - image.before;
    for (int64_t column = 0; column < image.columns; ++column) {
      const int64_t w = column * image.side + j - image.before;
      const bool is_inside = h >= 0 && h < image.height && w >= 0 && w < image.width;
      *out++ = is_inside ? x[h * image.width + w] : T(0);
    }
  }
}

template <typename T>
void arrange(const Tensor& x, const Image& image, bool is_last, Tensor& out) {
  const auto* input = static_cast<const T*>(x.const_data_ptr());
  auto* output = static_cast<T*>(out.mutable_data_ptr());
  const int64_t pixels = image.height * image.width;
  const int64_t channels = image.side * image.side * image.channels;
  if (is_last) {
    const int64_t size = image.columns * channels;
    torch::stable::parallel_for(0, x.size(0) * image.rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const T* from = input + at / image.rows * pixels * image.channels;
        row_of_last(from, image, at % image.rows, output + at * size);
      }
    });
    return;
  }
  const int64_t size = image.rows * image.columns;
  torch::stable::parallel_for(0, x.size(0) * channels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t channel = at % channels, pixel = channel / image.channels;
      const int64_t from = at / channels * image.channels + channel % image.channels;
      plane(
          input + from * pixels, image, pixel / image.side, pixel % image.side, output + at * size);
    }
  });
}

// (N, C, H, W) to (N, side * side * C, rows, columns), in the memory format of x; zeros around x.
Tensor pixel_blocks(const Tensor& x, int64_t side, int64_t before, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(
      x.dim() == 4, "pixel_blocks: expected x of (N, C, H, W), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(
      side >= 1 && before >= 0 && rows >= 1 && columns >= 1,
      "pixel_blocks: expected positive numbers of pixels and blocks, got a side of ", side);
  const bool is_last = is_channels_last(x);
  const MemoryFormat format = is_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor dense = torch::stable::contiguous(x, format);
  const Image image{x.size(1), x.size(2), x.size(3), side, before, rows, columns};
  Tensor out = torch::stable::empty(
      {x.size(0), side * side * x.size(1), rows, columns}, x.scalar_type(), std::nullopt,
      std::nullopt, std::nullopt, format);
  switch (x.scalar_type()) {
    case ScalarType::Double:
      arrange<double>(dense, image, is_last, out);
      break;
    case ScalarType::Float:
      arrange<float>(dense, image, is_last, out);
      break;
    case ScalarType::BFloat16:
      arrange<BFloat16>(dense, image, is_last, out);
      break;
    case ScalarType::Half:
      arrange<Half>(dense, image, is_last, out);
      break;
    default:
      STD_TORCH_CHECK(
          false, "pixel_blocks: expected float32, float64, bfloat16 or float16, got another type");
  }
  return out;
}

// --- The end of a layer

// y <- relu(y + others + bias), where one bias is for `run` values and there are `kernels`.
template <typename T, typename A, bool kRelu>
void finish(
    T* __restrict y, const T* __restrict others, const T* __restrict bias, int64_t kernels,
    bool is_last, int64_t pixels, int64_t begin, int64_t end) {
  const auto ended = [](A sum) { return static_cast<T>(kRelu && sum < A(0) ? A(0) : sum); };
  // `begin` and `end` count pixels where the kernels of a pixel lie together, else planes.
  const int64_t size = is_last ? kernels : pixels;
  for (int64_t row = begin; row < end; ++row) {
    T* to = y + row * size;
    const T* from = others + row * size;
    if (is_last && bias) {
      for (int64_t i = 0; i < size; ++i) {
        to[i] = ended(static_cast<A>(to[i]) + static_cast<A>(from[i]) + static_cast<A>(bias[i]));
      }
      continue;
    }
    const A same = bias ? static_cast<A>(bias[row % kernels]) : A(0);
    for (int64_t i = 0; i < size; ++i) {
      to[i] = ended(static_cast<A>(to[i]) + static_cast<A>(from[i]) + same);
    }
  }
}

template <typename T, typename A>
void finish_all(Tensor& y, const Tensor& others, const std::optional<Tensor>& bias, bool relu) {
  auto* to = static_cast<T*>(y.mutable_data_ptr());
  const auto* from = static_cast<const T*>(others.const_data_ptr());
  const auto* biases = bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
  const bool is_last = is_channels_last(y);
  const int64_t kernels = y.size(1), pixels = y.size(2) * y.size(3);
  const int64_t rows = y.size(0) * (is_last ? pixels : kernels);
  constexpr int64_t kValuesPerThread = 16384;  // less is not worth a thread
  const int64_t least = std::max<int64_t>(1, kValuesPerThread / (is_last ? kernels : pixels));
  torch::stable::parallel_for(0, rows, least, [&](int64_t begin, int64_t end) {
    if (relu) {
      finish<T, A, true>(to, from, biases, kernels, is_last, pixels, begin, end);
    } else {
      finish<T, A, false>(to, from, biases, kernels, is_last, pixels, begin, end);
    }
  });
}

// y and others are dense and of one memory format.
void finish_products(Tensor y, const Tensor& others, const std::optional<Tensor>& bias, bool relu) {
  bool alike = y.dim() == 4 && others.dim() == 4 && others.scalar_type() == y.scalar_type() &&
               others.is_cpu() && y.is_cpu();
  for (int64_t i = 0; alike && i < 4; ++i) {
    alike = others.size(i) == y.size(i) && (y.size(i) == 1 || others.stride(i) == y.stride(i));
  }
  STD_TORCH_CHECK(alike, "finish_products_: expected two tensors alike, got others");
  STD_TORCH_CHECK(
      !bias || (bias->dim() == 1 && bias->size(0) == y.size(1) && bias->is_contiguous() &&
                bias->scalar_type() == y.scalar_type()),
      "finish_products_: expected a bias for each kernel, got another");
  if (y.numel() == 0) return;
  switch (y.scalar_type()) {
    case ScalarType::Double:
      return finish_all<double, double>(y, others, bias, relu);
    case ScalarType::Float:
      return finish_all<float, float>(y, others, bias, relu);
    case ScalarType::BFloat16:
      return finish_all<BFloat16, float>(y, others, bias, relu);
    case ScalarType::Half:
      return finish_all<Half, float>(y, others, bias, relu);
    default:
      STD_TORCH_CHECK(
          false,
          "finish_products_: expected float32, float64, bfloat16 or float16, got another type");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(replica_cpu, m) {
  m.def("pixel_blocks(Tensor x, int side, int before, int rows, int columns) -> Tensor");
  m.def("finish_products_(Tensor(a!) y, Tensor others, Tensor? bias, bool relu) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(replica_cpu, CPU, m) {
  m.impl("pixel_blocks", TORCH_BOX(&pixel_blocks));
  m.impl("finish_products_", TORCH_BOX(&finish_products));
}
