// The loops of max pooling, by itself and after local response normalization, for the instruction
// set that is in force where this file is included. A, the type that values are compared and added
// in, is float, or double for double; T is the type in memory.
//
// Of each window are kept its maximum and, for the gradient, a bit for each of its places: whether
// that place gets the window's gradient. The gradient of a place is the sum over the windows that
// hold it, row by row, so it does not matter how the work is cut.

#include "local_response_norm_kernels.inl"

// What to do with ties where winners are kept, or that nobody wants winners.
enum class Keep { kNone, kFirst, kAll };

// Calls body with the constants for `w`: window 3, 2 or 0 for any other, and what is kept.
template <typename Body>
void with_constants(const Windows& w, bool keeps, Body body) {
  const auto with_window = [&]<Keep kKeep>() {
    if (w.window == 3) return body.template operator()<3, kKeep>();
    if (w.window == 2) return body.template operator()<2, kKeep>();
    return body.template operator()<0, kKeep>();
  };
  if (!keeps) return with_window.template operator()<Keep::kNone>();
  if (w.all_ties) return with_window.template operator()<Keep::kAll>();
  return with_window.template operator()<Keep::kFirst>();
}

// The maximum of a window's values, and which win, for a vector of windows or of channels.
template <Keep kKeep, typename V>
struct Largest {
  using A = typename V::Element;
  V best = V::all(-std::numeric_limits<A>::infinity());
  V bits = V::all(kKeep == Keep::kFirst ? A(1) : A(0));

  inline void take(V value, A bit) {
    if constexpr (kKeep == Keep::kNone) {
      best = larger(best, value);
    } else {
      take_larger<kKeep == Keep::kAll>(best, bits, value, V::all(bit));
    }
  }
  // max(0, x) comes next, so a window whose maximum is not positive passes nothing on.
  inline void rectify() {
    bits = where_positive(best, bits);
    best = rectified(best);
  }
};

// Channels last. `rows` are where the rows that a row of windows holds begin, each of columns *
// channels values; out and winners are those of its first window.
template <int kWindow, Keep kKeep, typename A, typename T>
void pool_row_of_rows(
    const T* const* rows, const Windows& w, bool relu_last, T* out, int16_t* winners) {
  using V = VectorOf<A>;
  const int64_t window = kWindow ? kWindow : w.window;
  for (int64_t column = 0; column < w.out_columns; ++column) {
    const int64_t first = column * w.stride * w.channels;
    const auto pool = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      Largest<kKeep, V> largest;
      A bit = 1;
#pragma GCC unroll 4
      for (int64_t i = 0; i < window; ++i) {
#pragma GCC unroll 4
        for (int64_t j = 0; j < window; ++j, bit *= 2) {
          largest.take(load<V>(rows[i] + first + j * w.channels + c, count), bit);
        }
      }
      if (relu_last) largest.rectify();
      const int64_t at = column * w.channels + c;
      store(largest.best, out + at, count);
      if constexpr (kKeep != Keep::kNone) store_bits(largest.bits, winners + at, count);
    };
    int64_t c = 0;
    for (; c + V::kLanes <= w.channels; c += V::kLanes) pool(c, V::kLanes);
    if (c < w.channels) pool(c, w.channels - c);
  }
}

// The same, with `row_of(i)` for where row i of a map begins.
template <typename A, typename T>
void pool_rows(
    auto row_of, int64_t out_row, const Windows& w, bool relu_last, T* out, int16_t* winners) {
  const T* rows[kMostPlaces];
  for (int64_t i = 0; i < w.window; ++i) rows[i] = row_of(out_row * w.stride + i);
  with_constants(w, winners != nullptr, [&]<int kWindow, Keep kKeep>() {
    pool_row_of_rows<kWindow, kKeep, A, T>(rows, w, relu_last, out, winners);
  });
}

// A window that holds a pixel.
struct Source {
  int64_t from;  // the first channel of a window
  int which;     // the bit of the pixel's place there
};

// The sum over kNum sources, or where that is 0 over `num`, for all channels.
template <int kNum, typename V, typename A, typename T>
inline void add_sources(
    const T* gradient, const int16_t* winners, const Source* sources, int num, int64_t channels,
    A* sums) {
  const auto add = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    V sum = V::zero();
#pragma GCC unroll 4
    for (int i = 0; i < (kNum ? kNum : num); ++i) {
      const int64_t at = sources[i].from + c;
      sum = sum + V::load_where(gradient + at, winners + at, sources[i].which, count);
    }
    return sum;
  };
  int64_t c = 0;
  for (; c + V::kLanes <= channels; c += V::kLanes) add(c, V::kLanes).store(sums + c);
  if constexpr (V::kLanes <= 16) {
    if (c < channels) store(add(c, channels - c), sums + c, channels - c);
  }
}

// The gradient of columns [begin, end) of row `row` of one map, in `sums`: stored by vectors V.
// `gradient` and `winners` are those of the map's first window.
template <typename V, typename A, typename T>
void unpool_pixels(
    const T* gradient, const int16_t* winners, int64_t row, int64_t begin, int64_t end,
    const Windows& w, A* sums) {
  const Range vertical = windows_of(row, w.window, w.stride, w.out_rows);
  for (int64_t column = begin; column < end; ++column, sums += w.channels) {
    const Range across = windows_of(column, w.window, w.stride, w.out_columns);
    Source sources[kMostPlaces];
    int num = 0;
    for (int64_t r = vertical.first; r <= vertical.last; ++r) {
      for (int64_t q = across.first; q <= across.last; ++q) {
        const int64_t place = (row - r * w.stride) * w.window + column - q * w.stride;
        sources[num++] = {(r * w.out_columns + q) * w.channels, 1 << place};
      }
    }
    const auto add = num == 1   ? add_sources<1, V, A, T>
                     : num == 2 ? add_sources<2, V, A, T>
                     : num == 4 ? add_sources<4, V, A, T>
                                : add_sources<0, V, A, T>;
    add(gradient, winners, sources, num, w.channels, sums);
  }
}

// Every `stride`-th value: `count` of them, zeros after them or anything. Up to two vectors are
// read.
template <typename V>
inline V load_strided(const auto* from, int64_t stride, int64_t count) {
  using A = typename V::Element;
  if constexpr (V::kLanes > 1) {
    if (stride == 2) return V::load_second(from);
    A values[V::kLanes] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[i * stride];
    return V::load(values);
  }
  return V::load(from);
}

// Planes. One row of windows of one plane of which `rows` is the first row that they hold, with two
// vectors of anything after the last.
template <int kWindow, Keep kKeep, typename A, typename T>
void pool_row_of_plane(const A* rows, const Windows& w, bool relu_last, T* out, int16_t* winners) {
  using V = VectorOf<A>;
  const int64_t window = kWindow ? kWindow : w.window;
  for (int64_t q = 0; q < w.out_columns; q += V::kLanes) {
    const int64_t count = std::min(V::kLanes, w.out_columns - q);
    Largest<kKeep, V> largest;
    A bit = 1;
#pragma GCC unroll 4
    for (int64_t i = 0; i < window; ++i) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < window; ++j, bit *= 2) {
        const A* from = rows + i * w.columns + q * w.stride + j;
        largest.take(load_strided<V>(from, w.stride, count), bit);
      }
    }
    if (relu_last) largest.rectify();
    store(largest.best, out + q, count);
    if constexpr (kKeep != Keep::kNone) store_bits(largest.bits, winners + q, count);
  }
}

// `count` values as A with room for two vectors after them: where they lie, if they have it there,
// or in `wide`.
template <typename A, typename T>
const A* widened(const T* from, int64_t count, bool has_room, std::vector<A>& wide) {
  using V = VectorOf<A>;
  if constexpr (std::is_same_v<A, T>) {
    if (has_room) return from;
  }
  wide.resize(count + 2 * V::kLanes);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t part = std::min(V::kLanes, count - i);
    store(load<V>(from + i, part), wide.data() + i, part);
  }
  return wide.data();
}

// Rows [first, last) of windows of one plane, of which `plane` is the first row that they hold; out
// and winners, which may be null, are those of the first window. `scratch` is kept.
template <typename A, typename T>
void pool_plane(
    const T* plane, int64_t first, int64_t last, const Windows& w, bool relu_last, bool has_room,
    std::vector<A>& scratch, T* out, int16_t* winners) {
  const int64_t size = ((last - first - 1) * w.stride + w.window) * w.columns;
  const A* const wide = widened(plane, size, has_room, scratch);
  with_constants(w, winners != nullptr, [&]<int kWindow, Keep kKeep>() {
    for (int64_t r = 0; r < last - first; ++r) {
      pool_row_of_plane<kWindow, kKeep>(
          wide + r * w.stride * w.columns, w, relu_last, out + r * w.out_columns,
          winners ? winners + r * w.out_columns : nullptr);
    }
  });
}

// The gradient of rows [first, last) of one plane, in `sums`; `gradient` and `winners` are those of
// the plane's first window.
template <typename A, typename T>
void unpool_plane(
    const T* gradient, const int16_t* winners, int64_t first, int64_t last, const Windows& w,
    A* sums) {
  std::fill(sums, sums + (last - first) * w.columns, A(0));
  const int64_t begin = windows_of(first, w.window, w.stride, w.out_rows).first;
  const int64_t end = windows_of(last - 1, w.window, w.stride, w.out_rows).last;
  int64_t rows[kMostPlaces], offsets[kMostPlaces];
  for (int64_t place = 0; place < w.window * w.window; ++place) {
    rows[place] = place / w.window;
    offsets[place] = rows[place] * w.columns + place % w.window;
  }
  for (int64_t r = begin; r <= end; ++r) {
    const int64_t top = r * w.stride - first;
    const bool is_inside = top >= 0 && top + w.window <= last - first;
    for (int64_t q = 0; q < w.out_columns; ++q) {
      unsigned bits = static_cast<uint16_t>(winners[r * w.out_columns + q]);
      const A value = static_cast<A>(gradient[r * w.out_columns + q]);
      const int64_t corner = top * w.columns + q * w.stride;
      for (; bits; bits &= bits - 1) {
        const int place = __builtin_ctz(bits);
        const int64_t row = top + rows[place];
        if (!is_inside && (row < 0 || row >= last - first)) continue;
        sums[corner + offsets[place]] += value;
      }
    }
  }
}

// Rows [first, last) of windows of one image, channels last: relu_lrn_pool.
template <typename T, typename A>
void fused_rows(
    const T* x, const Problem<A>& p, const Windows& w, bool relu_first, int64_t first, int64_t last,
    T* out, int16_t* winners) {
  // The normalized rows that the next windows need: row i is in place i % window.
  const int64_t size = w.columns * w.channels;
  std::vector<T> normalized(w.window * size);
  const auto row_of = [&](int64_t i) { return normalized.data() + i % w.window * size; };
  const auto normalize = relu_first ? rows<false, true, T, T, A> : rows<false, false, T, T, A>;
  const int64_t towers = w.channels / p.channels;
  int64_t made = first * w.stride;  // the first row that is not normalized
  for (int64_t r = first; r < last; ++r) {
    for (made = std::max(made, r * w.stride); made < r * w.stride + w.window; ++made) {
      normalize(nullptr, x + made * size, w.columns * towers, p, row_of(made));
    }
    const int64_t at = r * w.out_columns * w.channels;
    pool_rows<A>(row_of, r, w, !relu_first, out + at, winners ? winners + at : nullptr);
  }
}

// Rows [first, last) of one image, channels last, of the gradient. x and out are those of the
// image; gradient and winners those of its windows.
template <typename T, typename A>
void fused_rows_backward(
    const T* gradient, const int16_t* winners, const T* x, const Problem<A>& p, const Windows& w,
    bool relu_first, int64_t first, int64_t last, std::vector<A>& sums, T* out) {
  // Some pixels at a time: their sums, x and result stay in the first-level cache.
  const int64_t block = std::clamp<int64_t>(2048 / w.channels, 1, w.columns);
  sums.resize(block * w.channels);
  const auto normalize = relu_first ? rows<true, true, A, T, A> : rows<true, false, A, T, A>;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < w.columns; column += block) {
      const int64_t end = std::min(column + block, w.columns);
      with_row_vector<T>(p, [&]<typename V>(V) {
        unpool_pixels<V>(gradient, winners, row, column, end, w, sums.data());
      });
      const int64_t at = (row * w.columns + column) * w.channels;
      const int64_t num_rows = (end - column) * w.channels / p.channels;
      normalize(sums.data(), x + at, num_rows, p, out + at);
    }
  }
}

// Rows [first, last) of windows of one tower of one image, planes.
template <typename T, typename A>
void fused_planes(
    const T* x, const Problem<A>& p, const Windows& w, bool relu_first, int64_t first, int64_t last,
    std::vector<T>& normalized, std::vector<A>& scratch, T* out, int16_t* winners) {
  const int64_t pixels = ((last - first - 1) * w.stride + w.window) * w.columns;
  normalized.resize(p.channels * pixels + 2 * VectorOf<A>::kLanes);
  const auto normalize = relu_first ? planes<false, true, T, T, A> : planes<false, false, T, T, A>;
  normalize(
      nullptr, 0, x + first * w.stride * w.columns, p, pixels, scratch, normalized.data(), pixels);
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t at = c * w.out_pixels() + first * w.out_columns;
    pool_plane(
        normalized.data() + c * pixels, first, last, w, !relu_first, true, scratch, out + at,
        winners ? winners + at : nullptr);
  }
}

// Rows [first, last) of one tower of one image, planes, of the gradient.
template <typename T, typename A>
void fused_planes_backward(
    const T* gradient, const int16_t* winners, const T* x, const Problem<A>& p, const Windows& w,
    bool relu_first, int64_t first, int64_t last, std::vector<A>& sums, std::vector<A>& scratch,
    T* out) {
  const int64_t pixels = (last - first) * w.columns;
  sums.resize(p.channels * pixels);
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t at = c * w.out_pixels();
    unpool_plane(gradient + at, winners + at, first, last, w, sums.data() + c * pixels);
  }
  const auto normalize = relu_first ? planes<true, true, A, T, A> : planes<true, false, A, T, A>;
  const int64_t at = first * w.columns;
  normalize(sums.data(), pixels, x + at, p, pixels, scratch, out + at, p.pixels);
}

// All windows of one map, or of one image with channels last: max_pool2d. `winners` may be null.
template <typename A, typename T>
void pool_map(const T* x, const Windows& w, std::vector<A>& scratch, T* out, int16_t* winners) {
  if (w.channels == 1) {
    return pool_plane(x, 0, w.out_rows, w, false, false, scratch, out, winners);
  }
  const auto row_of = [&](int64_t i) { return x + i * w.columns * w.channels; };
  for (int64_t r = 0; r < w.out_rows; ++r) {
    const int64_t at = r * w.out_columns * w.channels;
    pool_rows<A>(row_of, r, w, false, out + at, winners ? winners + at : nullptr);
  }
}

// All of one map, or of one image with channels last, for windows of any size: gradient where
// `gradient` is not null, and out is that of x.
template <typename A, typename T>
void pool_any(const T* gradient, const T* x, const Windows& w, std::vector<A>& sums, T* out) {
  const int64_t size = w.pixels() * w.channels;
  if (gradient) sums.assign(size, A(0));
  for (int64_t r = 0; r < w.out_rows; ++r) {
    for (int64_t q = 0; q < w.out_columns; ++q) {
      const int64_t corner = (r * w.stride * w.columns + q * w.stride) * w.channels;
      const int64_t to = (r * w.out_columns + q) * w.channels;
      const auto each_place = [&](auto body) {
        for (int64_t i = 0; i < w.window; ++i) {
          for (int64_t j = 0; j < w.window; ++j) body((i * w.columns + j) * w.channels);
        }
      };
      for (int64_t c = 0; c < w.channels; ++c) {
        const T* const first = x + corner + c;
        A best = -std::numeric_limits<A>::infinity();
        int64_t place = 0;
        each_place([&](int64_t at) {
          const A value = static_cast<A>(first[at]);
          if (!(value > best || value != value)) return;
          best = value;
          place = at;
        });
        if (!gradient) {
          out[to + c] = static_cast<T>(best);
        } else if (w.all_ties) {
          each_place([&](int64_t at) {
            if (static_cast<A>(first[at]) == best) {
              sums[corner + at + c] += static_cast<A>(gradient[to + c]);
            }
          });
        } else {
          sums[corner + place + c] += static_cast<A>(gradient[to + c]);
        }
      }
    }
  }
  if (!gradient) return;
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(sums[i]);
}

// All of one map, or of one image with channels last: the gradient, from the maxima found anew.
template <typename A, typename T>
void pool_backward(const T* gradient, const T* x, const Windows& w, T* out) {
  using V = VectorOf<A>;
  std::vector<A> sums, scratch;
  if (w.window * w.window > kMostPlaces) return pool_any(gradient, x, w, sums, out);
  const int64_t width = w.out_columns * w.channels, columns = w.columns * w.channels;
  std::vector<T> pooled(w.out_rows * width);
  std::vector<int16_t> winners(w.out_rows * width);
  pool_map(x, w, scratch, pooled.data(), winners.data());
  const auto keep = [&](int64_t count, T* to) {
    for (int64_t i = 0; i < count; i += V::kLanes) {
      const int64_t part = std::min(V::kLanes, count - i);
      store(load<V>(sums.data() + i, part), to + i, part);
    }
  };
  if (w.channels == 1) {
    sums.resize(w.pixels());
    unpool_plane(gradient, winners.data(), 0, w.rows, w, sums.data());
    return keep(w.pixels(), out);
  }
  sums.resize(columns);
  for (int64_t row = 0; row < w.rows; ++row) {
    unpool_pixels<V>(gradient, winners.data(), row, 0, w.columns, w, sums.data());
    keep(columns, out + row * columns);
  }
}

// All of one map, or of one image with channels last.
template <typename A, typename T>
void pool_forward(const T* x, const Windows& w, T* out) {
  std::vector<A> scratch;
  if (w.window * w.window > kMostPlaces) {
    return pool_any(static_cast<const T*>(nullptr), x, w, scratch, out);
  }
  pool_map(x, w, scratch, out, static_cast<int16_t*>(nullptr));
}
