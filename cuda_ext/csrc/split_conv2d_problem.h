// What the GPU kernels of the split convolution are told.
#pragma once

#include <cstdint>

namespace split_conv2d {

// Distances in memory between neighbors, in values: NCHW, channels last, or any other.
struct Strides {
  int64_t image, channel, row, column;
};

struct Problem {
  int64_t images, height, width;  // of x
  int64_t channels, kernels;      // of one tower
  int64_t towers;
  int64_t side_rows, side_columns;  // of the kernels
  int64_t stride;
  int64_t before;  // rows and columns of zeros before the first
  int64_t out_rows, out_columns;
  Strides x, y;
  Strides weight;  // image: from one kernel to the next
};

}  // namespace split_conv2d
