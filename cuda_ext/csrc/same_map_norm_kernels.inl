// The loops of the same-map normalization, for the instruction set that is in force where this file
// is included. A, the type of sums, is float, or double for double; T is the type in memory.
//
//   y  = x * base^-beta,   base = k + alpha * sum of x^2 over the window around the place
//   dx = g * base^-beta - 2 alpha beta x * sum of t over the window around the place,
//   t  = g * x * base^-beta / base
//
// A piece of work is one map, or with channels last a block of channels of one image. It is packed:
// rows of columns * width values, so that neighbors along a row are `width` apart. Windows are
// summed along the rows first, then across them, always from the first to the last.

template <typename A>
using VectorOf = std::conditional_t<std::is_same_v<A, float>, Floats, Scalar<A>>;

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

// base^-beta and 1 / base.
template <typename V, typename A>
inline V inverse_power(V base, const Problem<A>& p, V* inverse) {
  V power;
  if (p.three_quarters) {
    inverse_three_quarters<true, 1>(&base, &power, inverse);
    return power;
  }
  A values[V::kLanes], powers[V::kLanes], inverses[V::kLanes];
  base.store(values);
  for (int64_t i = 0; i < V::kLanes; ++i) {
    powers[i] = std::pow(values[i], -p.beta);
    inverses[i] = A(1) / values[i];
  }
  *inverse = V::load(inverses);
  return V::load(powers);
}

// One piece; memory of a thread, kept from piece to piece.
template <typename A>
struct Packed {
  using V = VectorOf<A>;
  int64_t rows, size, border, width, reach;  // size: of a row, border: zeros on both of its sides
  std::vector<A> x, gradient, padded, sums, direct;

  Packed(const Problem<A>& p, int64_t width_)
      : rows(p.rows),
        size(p.columns * width_),
        border(p.reach_columns * width_),
        width(width_),
        reach(p.reach_rows),
        padded(size + 2 * border + V::kLanes) {}

  // Calls body(place within the row, number of values) for each vector of a row.
  void each_vector(auto body) const {
    int64_t i = 0;
    for (; i + V::kLanes <= size; i += V::kLanes) body(i, V::kLanes);
    if (i < size) body(i, size - i);
  }

  // Rows of `num` values, `stride` apart, as A.
  template <typename T>
  void read(const T* from, int64_t num, int64_t stride, std::vector<A>& to) {
    to.resize(rows * size);
    for (int64_t i = 0; i < rows * size / num; ++i, from += stride) {
      for (int64_t j = 0; j < num; j += V::kLanes) {
        const int64_t count = std::min(V::kLanes, num - j);
        store(load<V>(from + j, count), to.data() + i * num + j, count);
      }
    }
  }

  // Sums along each row of value_at(row, place, count), which is a vector.
  void sum_along_rows(auto value_at) {
    sums.resize(rows * size);
    for (int64_t row = 0; row < rows; ++row) {
      each_vector([&](int64_t i, int64_t count) {
        store(value_at(row * size + i, count), padded.data() + border + i, count);
      });
      each_vector([&](int64_t i, int64_t count) {
        V sum = V::zero();
        for (int64_t j = 0; j <= 2 * border; j += width) {
          sum = sum + load<V>(padded.data() + i + j, count);
        }
        store(sum, sums.data() + row * size + i, count);
      });
    }
  }

  // The sum over a whole window, after sum_along_rows.
  V window_sum(int64_t row, int64_t i, int64_t count) const {
    V sum = V::zero();
    const int64_t last = std::min(rows - 1, row + reach);
    for (int64_t j = std::max<int64_t>(0, row - reach); j <= last; ++j) {
      sum = sum + load<V>(sums.data() + j * size + i, count);
    }
    return sum;
  }
};

// `stride` is the distance between pixels, of which each has `packed.width` channels here.
template <typename T, typename A>
void normalize_piece(
    const T* gradient, const T* x, const Problem<A>& p, Packed<A>& packed, int64_t stride, T* out) {
  using V = VectorOf<A>;
  const bool is_map = p.channels == 1;
  const int64_t num = is_map ? packed.size : packed.width;  // that lie together in memory
  const int64_t step = is_map ? packed.size : stride;
  packed.read(x, num, step, packed.x);
  packed.sum_along_rows([&](int64_t at, int64_t count) {
    const V value = load<V>(packed.x.data() + at, count);
    return value * value;
  });
  const V k = V::all(p.k), alpha = V::all(p.alpha), factor = V::all(2 * p.alpha * p.beta);
  if (gradient) {
    packed.read(gradient, num, step, packed.gradient);
    packed.direct.resize(packed.rows * packed.size);
  }
  A* const result = gradient ? packed.direct.data() : packed.x.data();
  for (int64_t row = 0; row < p.rows; ++row) {
    packed.each_vector([&](int64_t i, int64_t count) {
      const int64_t at = row * packed.size + i;
      V inverse;
      const V base = multiply_add(packed.window_sum(row, i, count), alpha, k);
      const V power = inverse_power(base, p, &inverse);
      const V value = load<V>(packed.x.data() + at, count);
      if (!gradient) return store(value * power, result + at, count);
      const V g = load<V>(packed.gradient.data() + at, count) * power;
      store(g, packed.direct.data() + at, count);
      store(g * inverse * value, packed.gradient.data() + at, count);
    });
  }
  if (gradient) {
    packed.sum_along_rows(
        [&](int64_t at, int64_t count) { return load<V>(packed.gradient.data() + at, count); });
    for (int64_t row = 0; row < p.rows; ++row) {
      packed.each_vector([&](int64_t i, int64_t count) {
        const int64_t at = row * packed.size + i;
        const V sum = packed.window_sum(row, i, count);
        const V scaled = factor * load<V>(packed.x.data() + at, count);
        const V g = load<V>(packed.direct.data() + at, count);
        store(subtract_product(g, scaled, sum), packed.direct.data() + at, count);
      });
    }
  }
  for (int64_t i = 0; i < packed.rows * packed.size / num; ++i) {
    for (int64_t j = 0; j < num; j += V::kLanes) {
      const int64_t count = std::min(V::kLanes, num - j);
      store(load<V>(result + i * num + j, count), out + i * step + j, count);
    }
  }
}

// Piece `number` of all: `width` channels of an image, or as many as are left, or one map.
template <typename T, typename A>
void normalize(
    const T* gradient, const T* x, const Problem<A>& p, int64_t begin, int64_t end, int64_t width,
    T* out) {
  const int64_t pieces = (p.channels + width - 1) / width;  // of an image
  Packed<A> whole(p, std::min(width, p.channels));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % pieces * width;
    const int64_t at = i / pieces * p.rows * p.columns * p.channels + first;
    const T* g = gradient ? gradient + at : nullptr;
    if (p.channels - first >= whole.width) {
      normalize_piece(g, x + at, p, whole, p.channels, out + at);
    } else {
      Packed<A> part(p, p.channels - first);
      normalize_piece(g, x + at, p, part, p.channels, out + at);
    }
  }
}
