// One number at a time, for any processor: what the vector files offer, in plain C++.

template <typename A>
struct Scalar {
  using Element = A;
  static constexpr int64_t kLanes = 1;
  A value;

  static Scalar all(A value) { return {value}; }
  static Scalar zero() { return {A(0)}; }
  template <typename T>
  static Scalar load(const T* from) {
    return {static_cast<A>(*from)};
  }
  template <typename T>
  static Scalar load_part(const T* from, int64_t) {
    return load(from);
  }
  // Those of the first `count` among whose bits is one of `which`, zeros for the others.
  template <typename T>
  static Scalar load_where(const T* from, const int16_t* bits, int which, int64_t) {
    return *bits & which ? load(from) : zero();
  }
  template <typename T>
  void store(T* to) const {
    *to = static_cast<T>(value);
  }
  template <typename T>
  void store_part(T* to, int64_t) const {
    store(to);
  }
  // Past the caches, where the processor can; `to` is then aligned to a vector.
  template <typename T>
  void stream(T* to) const {
    store(to);
  }
};

template <typename A>
inline Scalar<A> operator+(Scalar<A> a, Scalar<A> b) {
  return {a.value + b.value};
}
template <typename A>
inline Scalar<A> operator-(Scalar<A> a, Scalar<A> b) {
  return {a.value - b.value};
}
template <typename A>
inline Scalar<A> operator*(Scalar<A> a, Scalar<A> b) {
  return {a.value * b.value};
}
template <typename A>
inline Scalar<A> operator/(Scalar<A> a, Scalar<A> b) {
  return {a.value / b.value};
}
template <typename A>
inline Scalar<A> multiply_add(Scalar<A> a, Scalar<A> b, Scalar<A> c) {
  return {a.value * b.value + c.value};
}
template <typename A>
inline Scalar<A> subtract_product(Scalar<A> c, Scalar<A> a, Scalar<A> b) {
  return {c.value - a.value * b.value};
}

// max(0, value); NaN stays.
template <typename A>
inline Scalar<A> rectified(Scalar<A> value) {
  return {value.value < A(0) ? A(0) : value.value};
}
// `passed` where value is positive or NaN, else zero.
template <typename A>
inline Scalar<A> where_positive(Scalar<A> value, Scalar<A> passed) {
  return {value.value <= A(0) ? A(0) : passed.value};
}
// The larger one, the first of equal ones, and NaN where one is NaN.
template <typename A>
inline Scalar<A> larger(Scalar<A> a, Scalar<A> b) {
  return b.value > a.value || b.value != b.value ? b : a;
}
// One more value of a window, in the order of its places: the larger one stays in `best`, the first
// of equal ones, and NaN. `winners` becomes the bit of its place, or where kAll the sum of the bits
// of all places that are equal to it, of which NaN has none.
template <bool kAll, typename A>
inline void take_larger(Scalar<A>& best, Scalar<A>& winners, Scalar<A> value, Scalar<A> bit) {
  const bool is_larger = value.value > best.value || value.value != value.value;
  if (is_larger) best = value;
  if constexpr (kAll) {
    if (is_larger) winners.value = A(0);
    if (value.value == best.value) winners.value += bit.value;
  } else {
    if (is_larger) winners = bit;
  }
}
// Bits as take_larger makes them, sums of 2^0 to 2^15.
template <typename A>
inline void store_bits(Scalar<A> bits, int16_t* to, int64_t) {
  *to = static_cast<int16_t>(static_cast<int32_t>(bits.value));
}

// base^-3/4 and, where asked for, 1 / base, of several vectors.
template <bool kInverse, int kCount, typename A>
inline void inverse_three_quarters(const Scalar<A>* base, Scalar<A>* power, Scalar<A>* inverse) {
  REPLICA_EACH {
    const A root = A(1) / std::sqrt(base[i].value);
    if constexpr (kInverse) inverse[i].value = A(1) / base[i].value;
    power[i].value = root * std::sqrt(root);
  }
}

// Three vectors hold kLanes pixels of three values: reverses the order of the pixels.
template <typename A>
inline void reverse_pixels(Scalar<A>*) {}
