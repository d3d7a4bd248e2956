// What the CPU and the CUDA code of augment_batch are told. Images have three values a pixel.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define REPLICA_BOTH __host__ __device__
#else
#define REPLICA_BOTH
#endif

namespace augment_batch {

// Where an image of the batch comes from, as a row of `places` has it.
struct Place {
  int64_t index, top, left, flip;
};

struct Problem {
  int64_t batch;                      // images of the result
  int64_t side;                       // of each, in pixels
  int64_t images;                     // that there are to choose from
  int64_t rows, columns;              // of each
  int64_t whole_rows, whole_columns;  // of what a place lies on: the mean image, if there is one
  bool is_cut;                        // the images are the crops, and places are on the mean image
  bool is_last;                       // channels of a pixel lie together in the result
  bool is_central;                    // the mean image's central part is subtracted from all crops
  float divisor;                      // of all values; 1 for none

  REPLICA_BOTH bool holds(const Place& place) const {
    return place.index >= 0 && place.index < images && place.top >= 0 &&
           place.top <= whole_rows - side && place.left >= 0 &&
           place.left <= whole_columns - side && (place.flip == 0 || place.flip == 1);
  }
  // The first value of a crop among those of its image, and on the mean image.
  REPLICA_BOTH int64_t first_on_image(const Place& place) const {
    return is_cut ? 0 : 3 * (place.top * columns + place.left);
  }
  REPLICA_BOTH int64_t first_on_mean(const Place& place) const {
    const int64_t top = is_central ? (whole_rows - side) / 2 : place.top;
    const int64_t left = is_central ? (whole_columns - side) / 2 : place.left;
    return 3 * (top * whole_columns + left);
  }
};

}  // namespace augment_batch

#undef REPLICA_BOTH
