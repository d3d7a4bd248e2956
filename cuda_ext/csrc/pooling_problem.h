// What the kernels of pooling are given, on the CPU and on the GPU: free of torch.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define REPLICA_ANYWHERE __host__ __device__
#else
#define REPLICA_ANYWHERE
#endif

namespace pooling {

// Maps as groups of channels, and the windows that are pooled. Rows and columns are those of x.
struct Windows {
  int64_t groups;    // of maps that lie together: images, where channels are last, else 1 channel
  int64_t channels;  // that lie together, 1 where the pixels of a map do
  int64_t rows, columns;
  int64_t out_rows, out_columns;
  int64_t window, stride;
  bool all_ties;  // the gradient goes to all maxima of a window, else to the first

  REPLICA_ANYWHERE int64_t pixels() const { return rows * columns; }
  REPLICA_ANYWHERE int64_t out_pixels() const { return out_rows * out_columns; }
};

// Places of a window have a bit each in int16: what a forward pass keeps of it.
constexpr int64_t kMostPlaces = 16;

// The windows [first, last] along one side that hold row (or column) `at`.
struct Range {
  int64_t first, last;
};
REPLICA_ANYWHERE inline Range windows_of(
    int64_t at, int64_t window, int64_t stride, int64_t number) {
  const int64_t first = at < window ? 0 : (at - window) / stride + 1;
  const int64_t last = at / stride < number ? at / stride : number - 1;
  return {first, last};
}

}  // namespace pooling

#undef REPLICA_ANYWHERE
