// The loops of local response normalization, for the instruction set that is in force where this
// file is included. V is a vector of lanes of the type in which sums are formed, T the type in
// memory. Each output is computed from inputs alone, in a fixed order, so a cut of the work over
// threads, or over whole and partial vectors, changes no bit.
//
//   y[c]  = x[c] * base[c]^-beta,   base[c] = k + alpha * sum of x^2 over the window around c
//   dx[c] = g[c] * base[c]^-beta - 2 alpha beta x[c] * sum of t over the window around c,
//   t[j]  = g[j] * x[j] * base[j]^-beta / base[j]

template <typename V>
inline V load(const auto* from, int64_t count) {
  return count == V::kLanes ? V::load(from) : V::load_part(from, count);
}

template <typename V>
inline void store(V value, auto* to, int64_t count) {
  if (count == V::kLanes) {
    value.store(to);
  } else {
    value.store_part(to, count);
  }
}

// base^-beta and, where asked for, 1 / base.
template <bool kInverse, typename V, typename A>
inline V inverse_power(V base, const Window<A>& w, V* inverse) {
  V power;
  if (w.three_quarters) {
    inverse_three_quarters<kInverse, 1>(&base, &power, inverse);
    return power;
  }
  A values[V::kLanes], powers[V::kLanes], inverses[V::kLanes];
  base.store(values);
  for (int64_t i = 0; i < V::kLanes; ++i) {
    powers[i] = std::pow(values[i], -w.beta);
    inverses[i] = A(1) / values[i];
  }
  if constexpr (kInverse) *inverse = V::load(inverses);
  return V::load(powers);
}

// Channels last: a row is one pixel's channels of one tower. Squares, and terms of the gradient,
// go through kRows rows with zeros around them, which stay in the first-level cache: reading back
// at a shift what was just written would wait for the write.
constexpr int64_t kRows = 4;

template <typename V>
int64_t row_stride(int64_t channels, int64_t reach) {
  return (channels + V::kLanes - 1) / V::kLanes * V::kLanes + 2 * reach;
}

// Number of values that the rows below need as scratch, all zero at first.
template <typename V>
int64_t rows_scratch(int64_t channels, int64_t reach) {
  return 3 * kRows * row_stride<V>(channels, reach);
}

template <typename V, typename A>
inline V window_sum(const A* padded, int64_t reach) {
  V sum = V::load(padded);
  for (int64_t j = 1; j <= 2 * reach; ++j) sum = sum + V::load(padded + j);
  return sum;
}

template <typename V, typename T, typename A>
inline void square_rows(const T* x, int64_t rows, int64_t channels, int64_t reach, A* squares) {
  const int64_t stride = row_stride<V>(channels, reach);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < channels; c += V::kLanes) {
      const V value = load<V>(x + r * channels + c, std::min(V::kLanes, channels - c));
      (value * value).store(squares + r * stride + reach + c);
    }
  }
}

template <typename V, typename T, typename A>
void forward_any_rows(
    const T* x, int64_t num_rows, int64_t channels, const Window<A>& w, A* scratch, T* out) {
  const int64_t stride = row_stride<V>(channels, w.reach);
  const V k = V::all(w.k), alpha = V::all(w.alpha);
  for (int64_t first = 0; first < num_rows; first += kRows) {
    const int64_t rows = std::min(kRows, num_rows - first);
    const T* block = x + first * channels;
    square_rows<V>(block, rows, channels, w.reach, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < channels; c += V::kLanes) {
        const int64_t count = std::min(V::kLanes, channels - c);
        const V sum = window_sum<V>(scratch + r * stride + c, w.reach);
        const V power = inverse_power<false, V, A>(multiply_add(sum, alpha, k), w, nullptr);
        store(
            load<V>(block + r * channels + c, count) * power, out + (first + r) * channels + c,
            count);
      }
    }
  }
}

template <typename V, typename T, typename A>
void backward_any_rows(
    const T* gradient, const T* x, int64_t num_rows, int64_t channels, const Window<A>& w,
    A* scratch, T* out) {
  const int64_t stride = row_stride<V>(channels, w.reach);
  A* terms = scratch + kRows * stride;
  A* direct = terms + kRows * stride;  // g * base^-beta
  const V k = V::all(w.k), alpha = V::all(w.alpha), factor = V::all(2 * w.alpha * w.beta);
  for (int64_t first = 0; first < num_rows; first += kRows) {
    const int64_t rows = std::min(kRows, num_rows - first);
    const T* block = x + first * channels;
    square_rows<V>(block, rows, channels, w.reach, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < channels; c += V::kLanes) {
        const int64_t count = std::min(V::kLanes, channels - c);
        const V sum = window_sum<V>(scratch + r * stride + c, w.reach);
        V inverse;
        const V power = inverse_power<true, V, A>(multiply_add(sum, alpha, k), w, &inverse);
        const V g = load<V>(gradient + (first + r) * channels + c, count) * power;
        const V term = g * inverse * load<V>(block + r * channels + c, count);
        g.store(direct + r * stride + c);
        // Beyond the last channel the zeros stay, whatever a NaN near them made of the term.
        store(term, terms + r * stride + w.reach + c, count);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < channels; c += V::kLanes) {
        const int64_t count = std::min(V::kLanes, channels - c);
        const V sum = window_sum<V>(terms + r * stride + c, w.reach);
        const V scaled = factor * load<V>(block + r * channels + c, count);
        store(
            subtract_product(V::load(direct + r * stride + c), scaled, sum),
            out + (first + r) * channels + c, count);
      }
    }
  }
}

// For n = 5, beta = 3/4 the same in registers: the neighbors of a vector's lanes are shifted in
// from the vectors before and after it, and beyond the ends of the row are zeros.
//
// kTogether vectors go step by step together: the processor looks ahead only so far, and one
// vector's steps wait for each other. Nanoseconds a vector of 16, forward and backward in float32,
// of one to three together on an AMD EPYC (Zen 4), 96 channels: 5.4 and 10.8, 5.9 and 10.3, 5.6 and
// 10.2; 256 channels: 5.9 and 11.9, 5.7 and 9.6, 5.4 and 9.9. Of 32 bfloat16 values, a half each:
// forward 6.2, 5.5 and 5.9; backward 9.3, 8.9 and 8.7.
template <typename V>
  requires(V::kLanes <= 16)
inline V window_sum_of(V before, V value, V after) {
  constexpr int kEnd = V::kLanes;
  return shifted<kEnd - 2>(before, value) + shifted<kEnd - 1>(before, value) + value +
         (shifted<1>(value, after) + shifted<2>(value, after));
}

// The vector that begins at channel c of a row: zeros beyond its end.
template <typename V, typename T>
inline V load_channels(const T* x, int64_t c, int64_t channels) {
  const int64_t left = channels - c;
  if (left >= V::kLanes) return V::load(x + c);
  return left > 0 ? V::load_part(x + c, left) : V::zero();
}

// One row from left to right; `step` does kCount vectors, the first of which begins at channel c.
template <typename V>
struct ForwardRow {
  V value, square_before, square;

  template <typename T>
  void begin(const T* x, int64_t channels) {
    value = load_channels<V>(x, 0, channels);
    square_before = V::zero();
    square = value * value;
  }

  template <int kCount, typename T>
  void step(const T* x, int64_t c, int64_t channels, V alpha, V k, T* out) {
    V values[kCount + 1], squares[kCount + 2], base[kCount], power[kCount];
    values[0] = value;
    squares[0] = square_before;
    squares[1] = square;
    REPLICA_EACH values[i + 1] = load_channels<V>(x, c + (i + 1) * V::kLanes, channels);
    REPLICA_EACH squares[i + 2] = values[i + 1] * values[i + 1];
    REPLICA_EACH base[i] = window_sum_of(squares[i], squares[i + 1], squares[i + 2]);
    REPLICA_EACH base[i] = multiply_add(base[i], alpha, k);
    inverse_three_quarters<false, kCount>(base, power, static_cast<V*>(nullptr));
    REPLICA_EACH {
      const int64_t at = c + i * V::kLanes;
      store(values[i] * power[i], out + at, std::min(V::kLanes, channels - at));
    }
    value = values[kCount];
    square_before = squares[kCount];
    square = squares[kCount + 1];
  }
};

template <typename V, typename T, typename A>
void forward_paper_rows(
    const T* x, int64_t num_rows, int64_t channels, const Window<A>& w, T* out) {
  constexpr int kTogether = V::kLanes > 16 ? 2 : 3;
  const V k = V::all(w.k), alpha = V::all(w.alpha);
  for (int64_t r = 0; r < num_rows; ++r, x += channels, out += channels) {
    ForwardRow<V> row;
    row.begin(x, channels);
    int64_t c = 0;
    for (; c + (kTogether - 1) * V::kLanes < channels; c += kTogether * V::kLanes) {
      row.template step<kTogether>(x, c, channels, alpha, k, out);
    }
    for (; c < channels; c += V::kLanes) row.template step<1>(x, c, channels, alpha, k, out);
  }
}

// The terms of a vector are complete one vector before the outputs that need them. Beyond the last
// channel a term is zero, or NaN where a channel so near is NaN that the outputs are, too.
template <typename V>
struct BackwardRow {
  V value, square_before, square;
  V value_before, direct_before, term_before, term_before_that;

  template <typename T>
  void begin(const T* x, int64_t channels) {
    value = load_channels<V>(x, 0, channels);
    square = value * value;
    square_before = value_before = direct_before = term_before = term_before_that = V::zero();
  }

  // Writes the outputs of the kCount vectors that end at channel c + (kCount - 1) * kLanes.
  template <int kCount, typename T>
  void step(
      const T* gradient, const T* x, int64_t c, int64_t channels, V alpha, V k, V factor, T* out) {
    V values[kCount + 2], squares[kCount + 2], terms[kCount + 2], direct[kCount + 1];
    V base[kCount], power[kCount], inverse[kCount];
    values[0] = value_before;
    values[1] = value;
    squares[0] = square_before;
    squares[1] = square;
    terms[0] = term_before_that;
    terms[1] = term_before;
    direct[0] = direct_before;
    REPLICA_EACH values[i + 2] = load_channels<V>(x, c + (i + 1) * V::kLanes, channels);
    REPLICA_EACH squares[i + 2] = values[i + 2] * values[i + 2];
    REPLICA_EACH base[i] = window_sum_of(squares[i], squares[i + 1], squares[i + 2]);
    REPLICA_EACH base[i] = multiply_add(base[i], alpha, k);
    inverse_three_quarters<true, kCount>(base, power, inverse);
    REPLICA_EACH direct[i + 1] = load_channels<V>(gradient, c + i * V::kLanes, channels) * power[i];
    REPLICA_EACH terms[i + 2] = direct[i + 1] * inverse[i] * values[i + 1];
    REPLICA_EACH base[i] = window_sum_of(terms[i], terms[i + 1], terms[i + 2]);
    REPLICA_EACH power[i] = subtract_product(direct[i], factor * values[i], base[i]);
    REPLICA_EACH {
      const int64_t at = c + (i - 1) * V::kLanes;
      if (at >= 0) store(power[i], out + at, std::min(V::kLanes, channels - at));
    }
    value_before = values[kCount];
    value = values[kCount + 1];
    square_before = squares[kCount];
    square = squares[kCount + 1];
    term_before_that = terms[kCount];
    term_before = terms[kCount + 1];
    direct_before = direct[kCount];
  }

  template <typename T>
  void end(int64_t channels, V factor, T* out) const {
    const V sum = window_sum_of(term_before_that, term_before, V::zero());
    const int64_t at = (channels - 1) / V::kLanes * V::kLanes;
    store(subtract_product(direct_before, factor * value_before, sum), out + at, channels - at);
  }
};

template <typename V, typename T, typename A>
void backward_paper_rows(
    const T* gradient, const T* x, int64_t num_rows, int64_t channels, const Window<A>& w, T* out) {
  constexpr int kTogether = 3;
  const V k = V::all(w.k), alpha = V::all(w.alpha), factor = V::all(2 * w.alpha * w.beta);
  for (int64_t r = 0; r < num_rows; ++r, x += channels, gradient += channels, out += channels) {
    BackwardRow<V> row;
    row.begin(x, channels);
    int64_t c = 0;
    for (; c + (kTogether - 1) * V::kLanes < channels; c += kTogether * V::kLanes) {
      row.template step<kTogether>(gradient, x, c, channels, alpha, k, factor, out);
    }
    for (; c < channels; c += V::kLanes) {
      row.template step<1>(gradient, x, c, channels, alpha, k, factor, out);
    }
    row.end(channels, factor, out);
  }
}

// Channels first: vectors lie along the pixels of a plane, and a window is 2 * reach + 1 planes.
//
// With the paper's n the planes of several neighboring outputs are read once into registers (for 4
// outputs 8 planes instead of 20), and the planes that come next are fetched into the second-level
// cache. Measured as multiples of a copy at (128, 96, 55, 55) and (128, 256, 27, 27), two threads
// of an AMD EPYC (Zen 4): forward 1.55 and 1.91 for one output at a time, 1.09 and 1.35 for four
// with the fetch; backward 2.75 and 3.85, 2.15 and 2.98 for two.

// Reads kOutputs + 2 * kReach planes from channel first - kReach on, zeros where there is none.
template <typename V, int kReach, int kOutputs, typename T>
inline void load_planes(
    const T* x, int64_t first, int64_t channels, int64_t pixels, int64_t count, V* values) {
#pragma GCC unroll 16
  for (int j = 0; j < kOutputs + 2 * kReach; ++j) {
    const int64_t c = first + j - kReach;
    values[j] = c < 0 || c >= channels ? V::zero() : load<V>(x + c * pixels, count);
  }
}

template <typename V, int kReach>
inline V sum_of(const V* values) {
  V sum = values[0];
#pragma GCC unroll 16
  for (int j = 1; j <= 2 * kReach; ++j) sum = sum + values[j];
  return sum;
}

// One tower of one image, pixels [begin, end). The fetch may point past the tensor: it reads
// nothing there.
template <typename V, int kReach, typename T, typename A>
void forward_paper_planes(
    const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end, const Window<A>& w,
    T* out) {
  constexpr int kOutputs = 4;
  const V k = V::all(w.k), alpha = V::all(w.alpha);
  for (int64_t first = 0; first < channels; first += kOutputs) {
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      V values[kOutputs + 2 * kReach], squares[kOutputs + 2 * kReach];
      V base[kOutputs], power[kOutputs];
      load_planes<V, kReach, kOutputs>(x + i, first, channels, pixels, count, values);
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs + 2 * kReach; ++j) squares[j] = values[j] * values[j];
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        __builtin_prefetch(x + (first + kOutputs + kReach + j) * pixels + i, 0, 2);
      }
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        base[j] = multiply_add(sum_of<V, kReach>(squares + j), alpha, k);
      }
      inverse_three_quarters<false, kOutputs>(base, power, static_cast<V*>(nullptr));
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        if (first + j >= channels) break;
        store(values[j + kReach] * power[j], out + (first + j) * pixels + i, count);
      }
    }
  }
}

// Rings of planes hold the terms and g * base^-beta of the channels around the output.
constexpr int64_t kTermPlanes = 8, kDirectPlanes = 4;

template <typename V, int kReach, typename T, typename A>
void backward_paper_planes(
    const T* gradient, const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end,
    const Window<A>& w, A* scratch, T* out) {
  constexpr int kOutputs = 2;
  static_assert(kOutputs + 2 * kReach <= kTermPlanes && kOutputs + kReach <= kDirectPlanes);
  const int64_t stride = (end - begin + V::kLanes - 1) / V::kLanes * V::kLanes;
  const auto terms = [&](int64_t c) { return scratch + c % kTermPlanes * stride; };
  const auto direct = [&](int64_t c) {
    return scratch + (kTermPlanes + c % kDirectPlanes) * stride;
  };
  const V k = V::all(w.k), alpha = V::all(w.alpha), factor = V::all(2 * w.alpha * w.beta);

  const auto make_terms = [&](int64_t first) {
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      V values[kOutputs + 2 * kReach], squares[kOutputs + 2 * kReach];
      V base[kOutputs], power[kOutputs], inverse[kOutputs];
      load_planes<V, kReach, kOutputs>(x + i, first, channels, pixels, count, values);
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs + 2 * kReach; ++j) squares[j] = values[j] * values[j];
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        __builtin_prefetch(x + (first + kOutputs + kReach + j) * pixels + i, 0, 2);
        __builtin_prefetch(gradient + (first + kOutputs + j) * pixels + i, 0, 2);
      }
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        base[j] = multiply_add(sum_of<V, kReach>(squares + j), alpha, k);
      }
      inverse_three_quarters<true, kOutputs>(base, power, inverse);
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        if (first + j >= channels) break;
        const V g = load<V>(gradient + (first + j) * pixels + i, count) * power[j];
        g.store(direct(first + j) + i - begin);
        (g * inverse[j] * values[j + kReach]).store(terms(first + j) + i - begin);
      }
    }
  };

  int64_t made = 0;  // channels whose terms are in the rings
  for (int64_t first = 0; first < channels; first += kOutputs) {
    for (; made < std::min(channels, first + kOutputs + kReach); made += kOutputs) {
      make_terms(made);
    }
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      V values[kOutputs + 2 * kReach];
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs + 2 * kReach; ++j) {
        const int64_t c = first + j - kReach;
        values[j] = c < 0 || c >= channels ? V::zero() : V::load(terms(c) + i - begin);
      }
#pragma GCC unroll 16
      for (int j = 0; j < kOutputs; ++j) {
        if (first + j >= channels) break;
        const V scaled = factor * load<V>(x + (first + j) * pixels + i, count);
        const V g = V::load(direct(first + j) + i - begin);
        store(
            subtract_product(g, scaled, sum_of<V, kReach>(values + j)),
            out + (first + j) * pixels + i, count);
      }
    }
  }
}

// Any n and beta, one output at a time.
template <typename V, typename T, typename A>
inline V base_of(
    const T* x, int64_t c, int64_t channels, int64_t pixels, int64_t count, const Window<A>& w) {
  V sum = V::zero();
  const int64_t last = std::min(channels - 1, c + w.reach);
  for (int64_t j = std::max<int64_t>(0, c - w.reach); j <= last; ++j) {
    const V value = load<V>(x + j * pixels, count);
    sum = multiply_add(value, value, sum);
  }
  return multiply_add(sum, V::all(w.alpha), V::all(w.k));
}

template <typename V, typename T, typename A>
void forward_any_planes(
    const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end, const Window<A>& w,
    T* out) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      const V base = base_of<V>(x + i, c, channels, pixels, count, w);
      const V value = load<V>(x + c * pixels + i, count);
      store(value * inverse_power<false, V, A>(base, w, nullptr), out + c * pixels + i, count);
    }
  }
}

template <typename V, typename T, typename A>
void backward_any_planes(
    const T* gradient, const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end,
    const Window<A>& w, A* scratch, T* out) {
  const int64_t stride = (end - begin + V::kLanes - 1) / V::kLanes * V::kLanes;
  A* terms = scratch;
  A* direct = scratch + channels * stride;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      V inverse;
      const V base = base_of<V>(x + i, c, channels, pixels, count, w);
      const V power = inverse_power<true, V, A>(base, w, &inverse);
      const V g = load<V>(gradient + c * pixels + i, count) * power;
      g.store(direct + c * stride + i - begin);
      (g * inverse * load<V>(x + c * pixels + i, count)).store(terms + c * stride + i - begin);
    }
  }
  const V factor = V::all(2 * w.alpha * w.beta);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t last = std::min(channels - 1, c + w.reach);
    for (int64_t i = begin; i < end; i += V::kLanes) {
      const int64_t count = std::min(V::kLanes, end - i);
      V sum = V::zero();
      for (int64_t j = std::max<int64_t>(0, c - w.reach); j <= last; ++j) {
        sum = sum + V::load(terms + j * stride + i - begin);
      }
      const V scaled = factor * load<V>(x + c * pixels + i, count);
      const V g = V::load(direct + c * stride + i - begin);
      store(subtract_product(g, scaled, sum), out + c * pixels + i, count);
    }
  }
}

// Numbers of values that the backward needs as scratch for a block of `size` pixels.
template <typename V>
int64_t paper_planes_scratch(int64_t size) {
  return (size + V::kLanes - 1) / V::kLanes * V::kLanes * (kTermPlanes + kDirectPlanes);
}
template <typename V>
int64_t any_planes_scratch(int64_t channels, int64_t size) {
  return (size + V::kLanes - 1) / V::kLanes * V::kLanes * 2 * channels;
}

// What the host code calls: forward where `gradient` is null, else backward.

template <typename A>
struct VectorOf {
  using Type = Scalar<A>;
};
template <>
struct VectorOf<float> {
  using Type = Floats;
};

template <typename T, typename A>
void rows(
    const T* gradient, const T* x, int64_t num_rows, int64_t channels, const Window<A>& w, T* out) {
  using V = typename VectorOf<A>::Type;
  if constexpr (V::kLanes > 1) {
    using P = PaperVector<T>;
    if (w.is_paper() && channels % P::kLanes == 0) {
      if (!gradient) return forward_paper_rows<P>(x, num_rows, channels, w, out);
      return backward_paper_rows<P>(gradient, x, num_rows, channels, w, out);
    }
    if (w.is_paper()) {
      if (!gradient) return forward_paper_rows<V>(x, num_rows, channels, w, out);
      return backward_paper_rows<V>(gradient, x, num_rows, channels, w, out);
    }
  }
  std::vector<A> scratch(rows_scratch<V>(channels, w.reach), A(0));
  A* zeros = scratch.data();
  if (!gradient) return forward_any_rows<V>(x, num_rows, channels, w, zeros, out);
  backward_any_rows<V>(gradient, x, num_rows, channels, w, zeros, out);
}

// One tower of one image, pixels [begin, end); `scratch` is kept from call to call.
template <typename T, typename A>
void planes(
    const T* gradient, const T* x, int64_t channels, int64_t pixels, int64_t begin, int64_t end,
    const Window<A>& w, std::vector<A>& scratch, T* out) {
  using V = typename VectorOf<A>::Type;
  if constexpr (std::is_same_v<A, float>) {
    using P = PaperVector<T>;
    if (w.is_paper()) {
      if (!gradient) return forward_paper_planes<P, 2>(x, channels, pixels, begin, end, w, out);
      scratch.resize(paper_planes_scratch<P>(end - begin));
      return backward_paper_planes<P, 2>(
          gradient, x, channels, pixels, begin, end, w, scratch.data(), out);
    }
  }
  if (gradient) scratch.resize(any_planes_scratch<V>(channels, end - begin));
  if (!gradient) return forward_any_planes<V>(x, channels, pixels, begin, end, w, out);
  backward_any_planes<V>(gradient, x, channels, pixels, begin, end, w, scratch.data(), out);
}
