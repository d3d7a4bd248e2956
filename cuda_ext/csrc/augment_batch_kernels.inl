// The loops of augment_batch, for the instruction set that is in force where this file is
// included. A value is ((pixel - mean) + shift) / divisor, each rounded to float32, whatever the
// vectors are.

// One row of a crop, of `columns` pixels; `shift` has as many pixels as a vector has values. The
// mean is reflected with the pixels, or with kCentral lies as the result does.
template <bool kFlip, bool kCentral, bool kDivide, bool kStream, typename T>
inline void make_row(
    const uint8_t* pixels, const float* mean, const Floats* shift, const Problem& p, T* out) {
  constexpr int64_t kLanes = Floats::kLanes;
  const int64_t columns = p.side;
  const Floats divisor = Floats::all(p.divisor);
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    const int64_t from = 3 * (kFlip ? columns - column - kLanes : column);
    Floats values[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const int64_t at = from + i * kLanes;
      values[i] = Floats::load(pixels + at);
      if constexpr (!kCentral) values[i] = values[i] - Floats::load(mean + at) + shift[i];
    }
    if constexpr (kFlip) reverse_pixels(values);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      if constexpr (kCentral) {
        values[i] = values[i] - Floats::load(mean + 3 * column + i * kLanes) + shift[i];
      }
      if constexpr (kDivide) values[i] = values[i] / divisor;
      T* const to = out + 3 * column + i * kLanes;
      kStream ? values[i].stream(to) : values[i].store(to);
    }
  }
  if (column == columns) return;
  alignas(64) float shifts[kLanes];
  shift[0].store(shifts);
  for (; column < columns; ++column) {
    const int64_t from = 3 * (kFlip ? columns - column - 1 : column);
    const int64_t under = kCentral ? 3 * column : from;
    for (int c = 0; c < 3; ++c) {
      const float value =
          static_cast<float>(pixels[from + c]) - mean[under + c] + shifts[c % kLanes];
      out[3 * column + c] = static_cast<T>(kDivide ? value / p.divisor : value);
    }
  }
}

// The function above for an image, whose choices are the same in all rows.
template <typename T>
inline auto row_maker(const Problem& p, bool is_flipped, bool is_streamed) {
  const auto choose = [&](auto flip, auto central, auto divide) {
    return is_streamed ? make_row<flip, central, divide, true, T>
                       : make_row<flip, central, divide, false, T>;
  };
  const auto choose_divide = [&](auto flip, auto central) {
    return p.divisor != 1 ? choose(flip, central, std::true_type{})
                          : choose(flip, central, std::false_type{});
  };
  const auto choose_central = [&](auto flip) {
    return p.is_central ? choose_divide(flip, std::true_type{})
                        : choose_divide(flip, std::false_type{});
  };
  return is_flipped ? choose_central(std::true_type{}) : choose_central(std::false_type{});
}

// From pixels that lie together to planes, each of `plane` values.
template <typename T>
inline void to_planes(const T* row, int64_t columns, int64_t plane, T* out) {
  for (int c = 0; c < 3; ++c) {
    for (int64_t column = 0; column < columns; ++column) {
      out[c * plane + column] = row[3 * column + c];
    }
  }
}

// One image of the result. `pixels` and `mean` are where its crop begins; rows of the mean image
// are `mean_step` values apart (0: all are the same). `row_buffer` holds one row of the result.
template <typename T>
void make_image(
    const uint8_t* pixels, const float* mean, int64_t mean_step, const float* shift,
    const Problem& p, bool is_flipped, bool is_streamed, T* row_buffer, T* out) {
  constexpr int64_t kLanes = Floats::kLanes;
  alignas(64) float repeated[3 * kLanes];
  for (int64_t i = 0; i < 3 * kLanes; ++i) repeated[i] = shift[i % 3];
  Floats shifts[3];
  for (int i = 0; i < 3; ++i) shifts[i] = Floats::load(repeated + i * kLanes);
  const auto make_row_of = row_maker<T>(p, is_flipped, is_streamed);
  for (int64_t row = 0; row < p.side; ++row, pixels += 3 * p.columns, mean += mean_step) {
    if (p.is_last) {
      make_row_of(pixels, mean, shifts, p, out + 3 * row * p.side);
    } else {
      make_row_of(pixels, mean, shifts, p, row_buffer);
      to_planes(row_buffer, p.side, p.side * p.side, out + row * p.side);
    }
  }
}

// One crop of uint8.
inline void cut_image(
    const uint8_t* pixels, const Problem& p, bool is_flipped, bool is_streamed, uint8_t* out) {
  const int64_t plane = p.side * p.side;
  for (int64_t row = 0; row < p.side; ++row, pixels += 3 * p.columns) {
    if (p.is_last && !is_flipped) {
      copy_row(pixels, 3 * p.side, is_streamed, out + 3 * row * p.side);
      continue;
    }
    uint8_t* to = out + (p.is_last ? 3 : 1) * row * p.side;
    for (int64_t column = 0; column < p.side; ++column) {
      const uint8_t* from = pixels + 3 * (is_flipped ? p.side - column - 1 : column);
      for (int c = 0; c < 3; ++c) to[p.is_last ? 3 * column + c : c * plane + column] = from[c];
    }
  }
}
