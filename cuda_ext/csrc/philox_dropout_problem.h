// What the CPU and the CUDA code of dropout are told.
#pragma once

#include "philox.h"

namespace philox_dropout {

using philox::Key;

struct Problem {
  int64_t rows;   // of x, contiguous (rows, units)
  int64_t units;  // those of the layer from first_unit on
  int64_t first_unit;
  uint32_t layer;
  Key key;
  uint64_t threshold;  // a word below it lets its unit stay; at most 2^32
};

}  // namespace philox_dropout
