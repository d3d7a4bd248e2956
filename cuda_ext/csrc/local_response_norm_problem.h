// What the kernels are given, on the CPU and on the GPU: free of torch.
#pragma once

#include <cstdint>

namespace local_response_norm {

// A tensor as groups (one tower of one image each) of channels and pixels, and the formula.
template <typename A>
struct Problem {
  int64_t groups;
  int64_t channels;  // of one tower
  int64_t pixels;
  bool is_rows;   // the channels of a pixel lie together, else the pixels of a channel
  int64_t reach;  // n / 2; a window that is wider than a tower holds the whole tower and no more
  A k;
  A alpha;
  A beta;
  bool three_quarters;  // beta = 3/4
};

}  // namespace local_response_norm
