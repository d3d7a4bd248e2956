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
  template <typename T>
  void store(T* to) const {
    *to = static_cast<T>(value);
  }
  template <typename T>
  void store_part(T* to, int64_t) const {
    store(to);
  }
};

template <typename A>
inline Scalar<A> operator+(Scalar<A> a, Scalar<A> b) {
  return {a.value + b.value};
}
template <typename A>
inline Scalar<A> operator*(Scalar<A> a, Scalar<A> b) {
  return {a.value * b.value};
}
template <typename A>
inline Scalar<A> multiply_add(Scalar<A> a, Scalar<A> b, Scalar<A> c) {
  return {a.value * b.value + c.value};
}
template <typename A>
inline Scalar<A> subtract_product(Scalar<A> c, Scalar<A> a, Scalar<A> b) {
  return {c.value - a.value * b.value};
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
