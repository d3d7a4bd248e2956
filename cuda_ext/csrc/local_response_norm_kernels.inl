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

// What the formula sees of x: where kRelu, max(0, x).
template <bool kRelu, typename V>
inline V load_x(const auto* from, int64_t count) {
  const V value = load<V>(from, count);
  if constexpr (kRelu) return rectified(value);
  return value;
}

// Of a derivative by max(0, x) that by x.
template <bool kRelu, typename V>
inline V through_relu(V value, V derivative) {
  if constexpr (kRelu) return where_positive(value, derivative);
  return derivative;
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
inline V inverse_power(V base, const Problem<A>& p, V* inverse) {
  V power;
  if (p.three_quarters) {
    inverse_three_quarters<kInverse, 1>(&base, &power, inverse);
    return power;
  }
  A values[V::kLanes], powers[V::kLanes], inverses[V::kLanes];
  base.store(values);
  for (int64_t i = 0; i < V::kLanes; ++i) {
    powers[i] = std::pow(values[i], -p.beta);
    inverses[i] = A(1) / values[i];
  }
  if constexpr (kInverse) *inverse = V::load(inverses);
  return V::load(powers);
}

// The next multiple of kLanes.
template <typename V>
inline int64_t whole_vectors(int64_t count) {
  return (count + V::kLanes - 1) / V::kLanes * V::kLanes;
}

// Channels last: a row is one pixel's channels of one tower. Squares, and terms of the gradient,
// go through kRows rows with zeros around them, which stay in the first-level cache: reading back
// at a shift what was just written would wait for the write.
constexpr int64_t kRows = 4;

template <typename V, typename A>
inline V window_sum(const A* padded, int64_t reach) {
  V sum = V::load(padded);
  for (int64_t j = 1; j <= 2 * reach; ++j) sum = sum + V::load(padded + j);
  return sum;
}

template <bool kBackward, bool kRelu, typename V, typename G, typename T, typename A>
void any_rows(const G* gradient, const T* x, int64_t num_rows, Problem<A> p, T* out) {
  const int64_t stride = whole_vectors<V>(p.channels) + 2 * p.reach;
  std::vector<A> scratch(3 * kRows * stride, A(0));
  A* squares = scratch.data();
  A* terms = squares + kRows * stride;
  A* direct = terms + kRows * stride;  // g * base^-beta
  const V k = V::all(p.k), alpha = V::all(p.alpha), factor = V::all(2 * p.alpha * p.beta);
  for (int64_t first = 0; first < num_rows; first += kRows) {
    // Calls body(place in memory, place in the scratch rows, number of values) for each vector.
    const auto each_vector = [&](auto body) {
      const int64_t end = std::min(first + kRows, num_rows);
      for (int64_t r = first; r < end; ++r) {
        for (int64_t c = 0; c < p.channels; c += V::kLanes) {
          const int64_t count = std::min(V::kLanes, p.channels - c);
          body(r * p.channels + c, (r - first) * stride + c, count);
        }
      }
    };
    each_vector([&](int64_t at, int64_t padded, int64_t count) {
      const V value = load_x<kRelu, V>(x + at, count);
      (value * value).store(squares + padded + p.reach);
    });
    each_vector([&](int64_t at, int64_t padded, int64_t count) {
      const V base = multiply_add(window_sum<V>(squares + padded, p.reach), alpha, k);
      V inverse;
      const V power = inverse_power<kBackward>(base, p, &inverse);
      const V value = load_x<kRelu, V>(x + at, count);
      if constexpr (kBackward) {
        const V g = load<V>(gradient + at, count) * power;
        g.store(direct + padded);
        // Beyond the last channel the zeros stay, whatever a NaN near them made of the term.
        store(g * inverse * value, terms + padded + p.reach, count);
      } else {
        store(value * power, out + at, count);
      }
    });
    if constexpr (kBackward) {
      each_vector([&](int64_t at, int64_t padded, int64_t count) {
        const V sum = window_sum<V>(terms + padded, p.reach);
        const V value = load_x<kRelu, V>(x + at, count);
        const V result = subtract_product(V::load(direct + padded), factor * value, sum);
        store(through_relu<kRelu>(value, result), out + at, count);
      });
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
template <bool kRelu, typename V, typename T>
inline V load_channels(const T* x, int64_t c, int64_t channels) {
  const int64_t left = channels - c;
  return left > 0 ? load_x<kRelu, V>(x + c, std::min(V::kLanes, left)) : V::zero();
}

// One row from left to right, forward or backward. The terms of a vector are complete one vector
// before the outputs that need them. Beyond the last channel a term is zero, or NaN where a channel
// so near is NaN that the outputs are, too.
template <bool kBackward, bool kRelu, typename V>
struct Row {
  V value, value_before, square, square_before, direct_before, term_before, term_before_that;

  template <typename T>
  void begin(const T* x, int64_t channels) {
    value = load_channels<kRelu, V>(x, 0, channels);
    square = value * value;
    value_before = square_before = direct_before = term_before = term_before_that = V::zero();
  }

  // Does kCount vectors, the first of which begins at channel c. Backward, the outputs are those
  // of one vector before.
  template <int kCount, typename G, typename T>
  void step(
      const G* gradient, const T* x, int64_t c, int64_t channels, V alpha, V k, V factor, T* out) {
    V values[kCount + 2], squares[kCount + 2], base[kCount], power[kCount], inverse[kCount];
    values[0] = value_before;
    values[1] = value;
    squares[0] = square_before;
    squares[1] = square;
    REPLICA_EACH values[i + 2] = load_channels<kRelu, V>(x, c + (i + 1) * V::kLanes, channels);
    REPLICA_EACH squares[i + 2] = values[i + 2] * values[i + 2];
    REPLICA_EACH base[i] = window_sum_of(squares[i], squares[i + 1], squares[i + 2]);
    REPLICA_EACH base[i] = multiply_add(base[i], alpha, k);
    inverse_three_quarters<kBackward, kCount>(base, power, inverse);
    if constexpr (kBackward) {
      V terms[kCount + 2], direct[kCount + 1];
      terms[0] = term_before_that;
      terms[1] = term_before;
      direct[0] = direct_before;
      REPLICA_EACH direct[i + 1] =
          load_channels<false, V>(gradient, c + i * V::kLanes, channels) * power[i];
      REPLICA_EACH terms[i + 2] = direct[i + 1] * inverse[i] * values[i + 1];
      REPLICA_EACH base[i] = window_sum_of(terms[i], terms[i + 1], terms[i + 2]);
      REPLICA_EACH power[i] = subtract_product(direct[i], factor * values[i], base[i]);
      REPLICA_EACH power[i] = through_relu<kRelu>(values[i], power[i]);
      REPLICA_EACH {
        const int64_t at = c + (i - 1) * V::kLanes;
        if (at >= 0) store(power[i], out + at, std::min(V::kLanes, channels - at));
      }
      term_before_that = terms[kCount];
      term_before = terms[kCount + 1];
      direct_before = direct[kCount];
    } else {
      REPLICA_EACH {
        const int64_t at = c + i * V::kLanes;
        store(values[i + 1] * power[i], out + at, std::min(V::kLanes, channels - at));
      }
    }
    value_before = values[kCount];
    value = values[kCount + 1];
    square_before = squares[kCount];
    square = squares[kCount + 1];
  }

  // The last outputs of the backward.
  template <typename T>
  void end(int64_t channels, V factor, T* out) const {
    const V sum = window_sum_of(term_before_that, term_before, V::zero());
    const int64_t at = (channels - 1) / V::kLanes * V::kLanes;
    const V result = subtract_product(direct_before, factor * value_before, sum);
    store(through_relu<kRelu>(value_before, result), out + at, channels - at);
  }
};

template <bool kBackward, bool kRelu, typename V, typename G, typename T, typename A>
void paper_rows(const G* gradient, const T* x, int64_t num_rows, Problem<A> p, T* out) {
  constexpr int kTogether = !kBackward && V::kLanes > 16 ? 2 : 3;
  const int64_t channels = p.channels;
  const V k = V::all(p.k), alpha = V::all(p.alpha), factor = V::all(2 * p.alpha * p.beta);
  for (int64_t r = 0; r < num_rows; ++r, x += channels, out += channels) {
    const G* g = kBackward ? gradient + r * channels : nullptr;
    Row<kBackward, kRelu, V> row;
    row.begin(x, channels);
    int64_t c = 0;
    for (; c + (kTogether - 1) * V::kLanes < channels; c += kTogether * V::kLanes) {
      row.template step<kTogether>(g, x, c, channels, alpha, k, factor, out);
    }
    for (; c < channels; c += V::kLanes) {
      row.template step<1>(g, x, c, channels, alpha, k, factor, out);
    }
    if constexpr (kBackward) row.end(channels, factor, out);
  }
}

// Channels first: vectors lie along the pixels of a plane, and a window is 2 * reach + 1 planes.
//
// With the paper's n the planes of several neighboring outputs are read once into registers (for 4
// outputs 8 planes instead of 20), and the planes that come next are fetched into the second-level
// cache. Measured as multiples of a copy at (128, 96, 55, 55) and (128, 256, 27, 27), two threads
// of an AMD EPYC (Zen 4): forward 1.55 and 1.91 for one output at a time, 1.09 and 1.35 for four
// with the fetch; backward 2.75 and 3.85, 2.15 and 2.98 for two.

constexpr int kReach = 2;

// Reads kCount + 2 * kReach planes from channel first - kReach on, zeros where there is none.
template <int kCount, bool kRelu, typename V, typename T>
inline void load_planes(
    const T* x, int64_t first, int64_t channels, int64_t pixels, int64_t count, V* values) {
#pragma GCC unroll 16
  for (int j = 0; j < kCount + 2 * kReach; ++j) {
    const int64_t c = first + j - kReach;
    values[j] = c < 0 || c >= channels ? V::zero() : load_x<kRelu, V>(x + c * pixels, count);
  }
}

template <typename V>
inline V sum_of(const V* values) {
  return values[0] + values[1] + values[2] + values[3] + values[4];
}

// base^-beta and, where asked for, 1 / base, of kCount channels amid their neighbors.
template <bool kInverse, int kCount, typename V>
inline void powers_of(const V* values, V alpha, V k, V* power, V* inverse) {
  V squares[kCount + 2 * kReach], base[kCount];
#pragma GCC unroll 16
  for (int j = 0; j < kCount + 2 * kReach; ++j) squares[j] = values[j] * values[j];
  REPLICA_EACH base[i] = multiply_add(sum_of(squares + i), alpha, k);
  inverse_three_quarters<kInverse, kCount>(base, power, inverse);
}

// `num` pixels of one tower of one image; the planes of x have p.pixels pixels, those of the result
// may be others. The fetch may point past the tensor: it reads nothing there.
template <bool kRelu, typename V, typename T, typename A>
void forward_paper_planes(const T* x, Problem<A> p, int64_t num, T* out, int64_t out_pixels) {
  constexpr int kCount = 4;
  const int64_t channels = p.channels, pixels = p.pixels;
  const V k = V::all(p.k), alpha = V::all(p.alpha);
  for (int64_t first = 0; first < channels; first += kCount) {
    for (int64_t at = 0; at < num; at += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - at);
      V values[kCount + 2 * kReach], power[kCount];
      load_planes<kCount, kRelu>(x + at, first, channels, pixels, count, values);
      REPLICA_EACH __builtin_prefetch(x + (first + kCount + kReach + i) * pixels + at, 0, 2);
      powers_of<false, kCount>(values, alpha, k, power, static_cast<V*>(nullptr));
      REPLICA_EACH {
        if (first + i >= channels) break;
        store(values[i + kReach] * power[i], out + (first + i) * out_pixels + at, count);
      }
    }
  }
}

// Rings of planes hold the terms and g * base^-beta of the channels around the output.
template <bool kRelu, typename V, typename G, typename T, typename A>
void backward_paper_planes(
    const G* gradient, int64_t gradient_pixels, const T* x, Problem<A> p, int64_t num,
    std::vector<A>& scratch, T* out) {
  constexpr int kCount = 2;
  constexpr int64_t kTermPlanes = 8, kDirectPlanes = 4;
  static_assert(kCount + 2 * kReach <= kTermPlanes && kCount + kReach <= kDirectPlanes);
  const int64_t stride = whole_vectors<V>(num);
  scratch.resize((kTermPlanes + kDirectPlanes) * stride);
  const int64_t channels = p.channels, pixels = p.pixels;
  const V k = V::all(p.k), alpha = V::all(p.alpha), factor = V::all(2 * p.alpha * p.beta);
  A* const rings = scratch.data();
  const auto terms = [&](int64_t c) { return rings + c % kTermPlanes * stride; };
  const auto direct = [&](int64_t c) { return rings + (kTermPlanes + c % kDirectPlanes) * stride; };

  const auto make_terms = [&](int64_t first) {
    for (int64_t at = 0; at < num; at += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - at);
      V values[kCount + 2 * kReach], power[kCount], inverse[kCount];
      load_planes<kCount, kRelu>(x + at, first, channels, pixels, count, values);
      REPLICA_EACH {
        __builtin_prefetch(x + (first + kCount + kReach + i) * pixels + at, 0, 2);
        __builtin_prefetch(gradient + (first + kCount + i) * gradient_pixels + at, 0, 2);
      }
      powers_of<true, kCount>(values, alpha, k, power, inverse);
      REPLICA_EACH {
        if (first + i >= channels) break;
        const V g = load<V>(gradient + (first + i) * gradient_pixels + at, count) * power[i];
        g.store(direct(first + i) + at);
        (g * inverse[i] * values[i + kReach]).store(terms(first + i) + at);
      }
    }
  };

  int64_t made = 0;  // channels whose terms are in the rings
  for (int64_t first = 0; first < channels; first += kCount) {
    for (; made < std::min(channels, first + kCount + kReach); made += kCount) make_terms(made);
    for (int64_t at = 0; at < num; at += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - at);
      V values[kCount + 2 * kReach];
#pragma GCC unroll 16
      for (int j = 0; j < kCount + 2 * kReach; ++j) {
        const int64_t c = first + j - kReach;
        values[j] = c < 0 || c >= channels ? V::zero() : V::load(terms(c) + at);
      }
      REPLICA_EACH {
        if (first + i >= channels) break;
        const int64_t place = (first + i) * pixels + at;
        const V value = load_x<kRelu, V>(x + place, count);
        const V g = V::load(direct(first + i) + at);
        const V result = subtract_product(g, factor * value, sum_of(values + i));
        store(through_relu<kRelu>(value, result), out + place, count);
      }
    }
  }
}

// Any n and beta, one output at a time.
template <bool kBackward, bool kRelu, typename V, typename G, typename T, typename A>
void any_planes(
    const G* gradient, int64_t gradient_pixels, const T* x, Problem<A> p, int64_t num,
    std::vector<A>& scratch, T* out, int64_t out_pixels) {
  const int64_t stride = whole_vectors<V>(num);
  if (kBackward) scratch.resize(2 * p.channels * stride);
  A* const terms = scratch.data();
  A* const direct = terms + p.channels * stride;
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t first = std::max<int64_t>(0, c - p.reach);
    const int64_t last = std::min(p.channels - 1, c + p.reach);
    for (int64_t at = 0; at < num; at += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - at);
      V sum = V::zero();
      for (int64_t j = first; j <= last; ++j) {
        const V neighbor = load_x<kRelu, V>(x + j * p.pixels + at, count);
        sum = multiply_add(neighbor, neighbor, sum);
      }
      const V base = multiply_add(sum, V::all(p.alpha), V::all(p.k));
      V inverse;
      const V power = inverse_power<kBackward>(base, p, &inverse);
      const V value = load_x<kRelu, V>(x + c * p.pixels + at, count);
      if constexpr (kBackward) {
        const V g = load<V>(gradient + c * gradient_pixels + at, count) * power;
        g.store(direct + c * stride + at);
        (g * inverse * value).store(terms + c * stride + at);
      } else {
        store(value * power, out + c * out_pixels + at, count);
      }
    }
  }
  if constexpr (!kBackward) return;
  const V factor = V::all(2 * p.alpha * p.beta);
  for (int64_t c = 0; c < p.channels; ++c) {
    const int64_t first = std::max<int64_t>(0, c - p.reach);
    const int64_t last = std::min(p.channels - 1, c + p.reach);
    for (int64_t at = 0; at < num; at += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - at);
      V sum = V::zero();
      for (int64_t j = first; j <= last; ++j) {
        sum = sum + V::load(terms + j * stride + at);
      }
      const V value = load_x<kRelu, V>(x + c * p.pixels + at, count);
      const V g = V::load(direct + c * stride + at);
      const V result = subtract_product(g, factor * value, sum);
      store(through_relu<kRelu>(value, result), out + c * out_pixels + at, count);
    }
  }
}

// What the host code calls.

template <typename A>
using VectorOf = std::conditional_t<std::is_same_v<A, float>, Floats, Scalar<A>>;

// Whether the loops for n = 5, beta = 3/4 serve.
template <typename A>
bool is_paper(const Problem<A>& p) {
  return std::is_same_v<A, float> && p.reach == kReach && p.three_quarters;
}

// Calls body(V{}) with the vector that rows of such a problem are done in. A gradient of type A,
// where that is not T, was stored by such vectors from the beginning of each row on.
template <typename T, typename A>
auto with_row_vector(const Problem<A>& p, auto body) {
  using V = VectorOf<A>;
  if constexpr (V::kLanes > 1) {
    using P = PaperVector<T>;
    if (is_paper(p) && p.channels % P::kLanes == 0) return body(P{});
  }
  return body(V{});
}

template <bool kBackward, bool kRelu, typename G, typename T, typename A>
void rows(const G* gradient, const T* x, int64_t num_rows, const Problem<A>& p, T* out) {
  with_row_vector<T>(p, [&]<typename V>(V) {
    if constexpr (V::kLanes > 1) {
      if (is_paper(p)) {
        return paper_rows<kBackward, kRelu, V>(gradient, x, num_rows, p, out);
      }
    }
    if constexpr (V::kLanes <= 16) {
      any_rows<kBackward, kRelu, V>(gradient, x, num_rows, p, out);
    }
  });
}

// `num` pixels of one tower of one image, from the first of each plane on; planes of x, and
// backward of the result, have p.pixels pixels. `scratch` is kept from call to call.
template <bool kBackward, bool kRelu, typename G, typename T, typename A>
void planes(
    const G* gradient, int64_t gradient_pixels, const T* x, const Problem<A>& p, int64_t num,
    std::vector<A>& scratch, T* out, int64_t out_pixels) {
  if constexpr (std::is_same_v<A, float>) {
    // Two vectors at a time would take a gradient of type A in another order.
    using P = std::conditional_t<std::is_same_v<G, T>, PaperVector<T>, Floats>;
    if (is_paper(p) && kBackward) {
      return backward_paper_planes<kRelu, P>(gradient, gradient_pixels, x, p, num, scratch, out);
    }
    if (is_paper(p)) return forward_paper_planes<kRelu, PaperVector<T>>(x, p, num, out, out_pixels);
  }
  any_planes<kBackward, kRelu, VectorOf<A>>(
      gradient, gradient_pixels, x, p, num, scratch, out, out_pixels);
}
