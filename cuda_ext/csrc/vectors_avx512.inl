// Sixteen floats in an AVX-512 register.

struct Floats {
  using Element = float;
  static constexpr int64_t kLanes = 16;
  __m512 value;

  static Floats all(float value) { return {_mm512_set1_ps(value)}; }
  static Floats zero() { return {_mm512_setzero_ps()}; }
  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

  static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Floats load(const BFloat16* from) {
    return widen(_mm256_loadu_si256(as_bits(from)), from);
  }
  static Floats load(const Half* from) { return widen(_mm256_loadu_si256(as_bits(from)), from); }
  static Floats load(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
  }
  // The first `count` values, zeros after them; the others are not read.
  static Floats load_part(const float* from, int64_t count) {
    return {_mm512_maskz_loadu_ps(first(count), from)};
  }
  template <typename T>
  static Floats load_part(const T* from, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(first(count), from), from);
  }

  void store(float* to) const { _mm512_storeu_ps(to, value); }
  template <typename T>
  void store(T* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(to));
  }
  // Past the caches; `to` is aligned to a vector.
  void stream(float* to) const { _mm512_stream_ps(to, value); }
  void stream(BFloat16* to) const {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), narrow(to));
  }
  void store_part(float* to, int64_t count) const {
    _mm512_mask_storeu_ps(to, first(count), value);
  }
  template <typename T>
  void store_part(T* to, int64_t count) const {
    _mm256_mask_storeu_epi16(to, first(count), narrow(to));
  }
  // Every second value of thirty-two.
  static Floats load_second(const float* from) {
    const __m512i second =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(from), second, _mm512_loadu_ps(from + 16))};
  }
  // Those of the first `count` among whose bits is one of `which`, zeros for the others.
  static Floats load_where(const float* from, const int16_t* bits, int which, int64_t count) {
    return {_mm512_maskz_loadu_ps(is_in(bits, which, count), from)};
  }
  template <typename T>
  static Floats load_where(const T* from, const int16_t* bits, int which, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(is_in(bits, which, count), from), from);
  }
  // In whose high halves are the nearest bfloat16 values, ties to even.
  __m512i rounded() const {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i to_even = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(
        _mm512_add_epi32(bits, to_even), is_nan, _mm512_set1_epi32(0x7fc00000));
  }

 private:
  static __mmask16 is_in(const int16_t* bits, int which, int64_t count) {
    const __m256i known = _mm256_maskz_loadu_epi16(first(count), bits);
    return _mm256_test_epi16_mask(known, _mm256_set1_epi16(static_cast<int16_t>(which)));
  }
  template <typename T>
  static const __m256i* as_bits(const T* from) {
    return reinterpret_cast<const __m256i*>(from);
  }
  static Floats widen(__m256i bits, const BFloat16*) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Floats widen(__m256i bits, const Half*) { return {_mm512_cvtph_ps(bits)}; }
  __m256i narrow(const BFloat16*) const {
#if REPLICA_BF16
    // The instruction makes zeros of denormal numbers.
    constexpr int kDenormal = 0x20;
    if (!_mm512_fpclass_ps_mask(value, kDenormal)) {
      return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    }
#endif
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(), 16));
  }
  __m256i narrow(const Half*) const {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.value, b.value)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
inline Floats subtract_product(Floats c, Floats a, Floats b) {
  return {_mm512_fnmadd_ps(a.value, b.value, c.value)};
}

// See vectors_any.inl. Of two zeros, and with NaN, the instruction takes the second.
inline Floats rectified(Floats value) { return {_mm512_max_ps(_mm512_setzero_ps(), value.value)}; }
inline Floats where_positive(Floats value, Floats passed) {
  const __mmask16 is_positive = _mm512_cmp_ps_mask(value.value, _mm512_setzero_ps(), _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(is_positive, passed.value)};
}
inline Floats larger(Floats a, Floats b) {
  const __mmask16 is_nan = _mm512_cmp_ps_mask(b.value, b.value, _CMP_UNORD_Q);
  return {_mm512_mask_mov_ps(_mm512_max_ps(b.value, a.value), is_nan, b.value)};
}
template <bool kAll>
inline void take_larger(Floats& best, Floats& winners, Floats value, Floats bit) {
  const __mmask16 is_larger = _mm512_cmp_ps_mask(value.value, best.value, _CMP_GT_OQ) |
                              _mm512_cmp_ps_mask(value.value, value.value, _CMP_UNORD_Q);
  best.value = _mm512_mask_mov_ps(best.value, is_larger, value.value);
  if constexpr (kAll) {
    const __mmask16 is_equal = _mm512_cmp_ps_mask(value.value, best.value, _CMP_EQ_OQ);
    winners.value = _mm512_mask_mov_ps(winners.value, is_larger, _mm512_setzero_ps());
    winners.value = _mm512_mask_add_ps(winners.value, is_equal, winners.value, bit.value);
  } else {
    winners.value = _mm512_mask_mov_ps(winners.value, is_larger, bit.value);
  }
}
inline void store_bits(Floats bits, int16_t* to, int64_t count) {
  const __m256i narrow = _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(bits.value));
  _mm256_mask_storeu_epi16(to, Floats::first(count), narrow);
}
// Lanes kShift to kShift + 15 of the 32 lanes of a and b.
template <int kShift>
inline Floats shifted(Floats a, Floats b) {
  return {_mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(b.value), _mm512_castps_si512(a.value), kShift))};
}

// See vectors_any.inl.
inline void reverse_pixels(Floats* pixels) {
  const __m512 a = pixels[0].value, b = pixels[1].value, c = pixels[2].value;
  // Lanes of the first operand, and from 16 on of the second.
  pixels[0].value = _mm512_permutex2var_ps(
      c, _mm512_setr_epi32(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 30), b);
  const __m512 middle = _mm512_permutex2var_ps(
      b, _mm512_setr_epi32(15, 16, 11, 12, 13, 8, 9, 10, 5, 6, 7, 2, 3, 4, 0, 0), c);
  pixels[1].value = _mm512_mask_permutexvar_ps(middle, 1 << 14, _mm512_set1_epi32(15), a);
  pixels[2].value = _mm512_permutex2var_ps(
      a, _mm512_setr_epi32(17, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2), b);
}

// base^-3/4 and, where asked for, 1 / base, of several vectors step by step: one vector's steps
// wait for each other, and the processor looks no further ahead than a few vectors.
//
// The product p of two estimates of 14 bits is off by d, at most 2.5 * 2^-14 of it, and
// base^3 p^4 is 1 + 4d to first order: one step leaves 2.5 d^2, half a unit in the last place.
// The step makes NaN of an infinite base: zero there.
template <bool kInverse, int kCount>
inline void inverse_three_quarters(const Floats* base, Floats* power, Floats* inverse) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  const __m512i quarter = _mm512_set1_epi32(-(2 << 23));  // added to the bits: times 1/4
  __m512 root[kCount], estimate[kCount], inverted[kCount], error[kCount];
  __mmask16 keep[kCount];
  REPLICA_EACH keep[i] = _mm512_cmp_ps_mask(base[i].value, infinity, _CMP_NEQ_UQ);
  REPLICA_EACH root[i] = _mm512_rsqrt14_ps(base[i].value);
  REPLICA_EACH estimate[i] = _mm512_mul_ps(_mm512_rsqrt14_ps(root[i]), root[i]);
  REPLICA_EACH estimate[i] = _mm512_mul_ps(estimate[i], root[i]);
  REPLICA_EACH inverted[i] = _mm512_mul_ps(base[i].value, estimate[i]);
  REPLICA_EACH inverted[i] = _mm512_mul_ps(inverted[i], estimate[i]);
  REPLICA_EACH inverted[i] = _mm512_mul_ps(inverted[i], inverted[i]);  // b^2 p^4, 1 / b but for d
  REPLICA_EACH error[i] = _mm512_fnmadd_ps(base[i].value, inverted[i], one);
  REPLICA_EACH power[i].value = _mm512_maskz_fmadd_ps(
      keep[i], _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(estimate[i]), quarter)),
      error[i], estimate[i]);
  if constexpr (kInverse) {
    // 1 / (1 - e) is 1 + e + e^2 but for e^3.
    REPLICA_EACH error[i] = _mm512_fmadd_ps(error[i], error[i], error[i]);
    REPLICA_EACH inverse[i].value =
        _mm512_maskz_fmadd_ps(keep[i], inverted[i], error[i], inverted[i]);
  }
}

// Thirty-two bfloat16 values as two vectors, those of even and those of odd places: widening and
// narrowing take fewer steps, and so do windows along them.
struct EvenAndOdd {
  using Element = float;
  static constexpr int64_t kLanes = 32;
  Floats even, odd;

  static EvenAndOdd all(float value) { return {Floats::all(value), Floats::all(value)}; }
  static EvenAndOdd zero() { return {Floats::zero(), Floats::zero()}; }
  static EvenAndOdd load(const BFloat16* from) { return widen(_mm512_loadu_si512(from)); }
  // Of values that were stored by the function below.
  static EvenAndOdd load(const float* from) {
    return {Floats::load(from), Floats::load(from + 16)};
  }
  // Rows of such values have only whole vectors.
  static EvenAndOdd load_part(const float* from, int64_t) { return load(from); }
  static EvenAndOdd load_part(const BFloat16* from, int64_t count) {
    return widen(_mm512_maskz_loadu_epi16(first(count), from));
  }
  static EvenAndOdd load_where(
      const BFloat16* from, const int16_t* bits, int which, int64_t count) {
    const __m512i known = _mm512_maskz_loadu_epi16(first(count), bits);
    const __mmask32 is_in =
        _mm512_test_epi16_mask(known, _mm512_set1_epi16(static_cast<int16_t>(which)));
    return widen(_mm512_maskz_loadu_epi16(is_in, from));
  }
  void store(BFloat16* to) const { _mm512_storeu_si512(to, narrow()); }
  void store(float* to) const {
    even.store(to);
    odd.store(to + 16);
  }
  void store_part(BFloat16* to, int64_t count) const {
    _mm512_mask_storeu_epi16(to, first(count), narrow());
  }

 private:
  static __mmask32 first(int64_t count) { return static_cast<__mmask32>((1ull << count) - 1); }
  static EvenAndOdd widen(__m512i bits) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return {
        {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))},
        {_mm512_castsi512_ps(_mm512_and_si512(bits, high))}};
  }
  __m512i narrow() const {
#if REPLICA_BF16
    constexpr int kDenormal = 0x20;
    if (!(_mm512_fpclass_ps_mask(even.value, kDenormal) |
          _mm512_fpclass_ps_mask(odd.value, kDenormal))) {
      const __m512i order = _mm512_set_epi16(
          31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
          19, 3, 18, 2, 17, 1, 16, 0);
      const __m512bh halves = _mm512_cvtne2ps_pbh(odd.value, even.value);
      return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(halves));
    }
#endif
    // In each pair of places the low one is even.
    const __m512i low = _mm512_srli_epi32(even.rounded(), 16);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_ternarylogic_epi32(high, odd.rounded(), low, 0xea);  // (high and odd) or low
  }
};

inline EvenAndOdd operator+(EvenAndOdd a, EvenAndOdd b) { return {a.even + b.even, a.odd + b.odd}; }
inline EvenAndOdd operator*(EvenAndOdd a, EvenAndOdd b) { return {a.even * b.even, a.odd * b.odd}; }
inline EvenAndOdd multiply_add(EvenAndOdd a, EvenAndOdd b, EvenAndOdd c) {
  return {multiply_add(a.even, b.even, c.even), multiply_add(a.odd, b.odd, c.odd)};
}
inline EvenAndOdd subtract_product(EvenAndOdd c, EvenAndOdd a, EvenAndOdd b) {
  return {subtract_product(c.even, a.even, b.even), subtract_product(c.odd, a.odd, b.odd)};
}
inline EvenAndOdd rectified(EvenAndOdd value) {
  return {rectified(value.even), rectified(value.odd)};
}
inline EvenAndOdd where_positive(EvenAndOdd value, EvenAndOdd passed) {
  return {where_positive(value.even, passed.even), where_positive(value.odd, passed.odd)};
}
inline EvenAndOdd window_sum_of(EvenAndOdd before, EvenAndOdd value, EvenAndOdd after) {
  const Floats odd_before = shifted<15>(before.odd, value.odd);
  const Floats even_after = shifted<1>(value.even, after.even);
  const Floats both = value.even + value.odd + (odd_before + even_after);
  return {both + shifted<15>(before.even, value.even), both + shifted<1>(value.odd, after.odd)};
}
template <bool kInverse, int kCount>
inline void inverse_three_quarters(const EvenAndOdd* base, EvenAndOdd* power, EvenAndOdd* inverse) {
  Floats bases[2 * kCount], powers[2 * kCount], inverses[2 * kCount];
  REPLICA_EACH bases[2 * i] = base[i].even;
  REPLICA_EACH bases[2 * i + 1] = base[i].odd;
  inverse_three_quarters<kInverse, 2 * kCount>(bases, powers, inverses);
  REPLICA_EACH power[i] = {powers[2 * i], powers[2 * i + 1]};
  if constexpr (kInverse) REPLICA_EACH inverse[i] = {inverses[2 * i], inverses[2 * i + 1]};
}

// What the loops for n = 5, beta = 3/4 work with, for values of type T in memory.
template <typename T>
using PaperVector = std::conditional_t<std::is_same_v<T, BFloat16>, EvenAndOdd, Floats>;
