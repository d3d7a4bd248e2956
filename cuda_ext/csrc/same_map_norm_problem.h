// What the kernels of the same-map normalization are given, on the CPU and on the GPU: free of
// torch.
#pragma once

#include <cstdint>

namespace same_map_norm {

// Maps as groups of channels, and the formula.
template <typename A>
struct Problem {
  int64_t groups;    // of maps that lie together: images, where channels are last, else 1 channel
  int64_t channels;  // that lie together, 1 where the pixels of a map do
  int64_t rows, columns;
  int64_t reach_rows, reach_columns;  // n / 2; less where a window is wider than the map
  A k;
  A alpha;
  A beta;
  bool three_quarters;  // beta = 3/4
};

}  // namespace same_map_norm
