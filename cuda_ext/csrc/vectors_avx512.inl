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
  void store_part(float* to, int64_t count) const {
    _mm512_mask_storeu_ps(to, first(count), value);
  }
  template <typename T>
  void store_part(T* to, int64_t count) const {
    _mm256_mask_storeu_epi16(to, first(count), narrow(to));
  }

 private:
  template <typename T>
  static const __m256i* as_bits(const T* from) {
    return reinterpret_cast<const __m256i*>(from);
  }
  static Floats widen(__m256i bits, const BFloat16*) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Floats widen(__m256i bits, const Half*) { return {_mm512_cvtph_ps(bits)}; }
  // Rounds to nearest, ties to even.
  __m256i narrow(const BFloat16*) const {
#if REPLICA_BF16
    // The instruction makes zeros of denormal numbers.
    constexpr int kDenormal = 0x20;
    if (!_mm512_fpclass_ps_mask(value, kDenormal)) {
      return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    }
#endif
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i to_even = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, to_even), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0)));
  }
  __m256i narrow(const Half*) const {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
inline Floats subtract_product(Floats c, Floats a, Floats b) {
  return {_mm512_fnmadd_ps(a.value, b.value, c.value)};
}

// Lanes kShift to kShift + 15 of the 32 lanes of a and b.
template <int kShift>
inline Floats shifted(Floats a, Floats b) {
  return {_mm512_castsi512_ps(
      _mm512_alignr_epi32(_mm512_castps_si512(b.value), _mm512_castps_si512(a.value), kShift))};
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
