// Eight floats in an AVX2 register.

struct Floats {
  using Element = float;
  static constexpr int64_t kLanes = 8;
  __m256 value;

  static Floats all(float value) { return {_mm256_set1_ps(value)}; }
  static Floats zero() { return {_mm256_setzero_ps()}; }

  static Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Floats load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Floats load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Floats load(const uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
  }
  // The first `count` values, zeros after them.
  template <typename T>
  static Floats load_part(const T* from, int64_t count) {
    alignas(32) T part[kLanes];
    std::memset(static_cast<void*>(part), 0, sizeof(part));
    std::memcpy(static_cast<void*>(part), from, count * sizeof(T));
    return load(part);
  }
  // Every second value of sixteen.
  static Floats load_second(const float* from) {
    const __m256 mixed =
        _mm256_shuffle_ps(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8), 0b10001000);
    const __m256d ordered = _mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0b11011000);
    return {_mm256_castpd_ps(ordered)};
  }
  // Those among whose bits is one of `which`, zeros for the others.
  template <typename T>
  static Floats load_where(const T* from, const int16_t* bits, int which, int64_t count) {
    alignas(16) int16_t part[kLanes] = {};
    std::memcpy(part, bits, count * sizeof(int16_t));
    const __m256i asked = _mm256_set1_epi32(which);
    const __m256i wide =
        _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(part)));
    const __m256i is_in = _mm256_cmpeq_epi32(_mm256_and_si256(wide, asked), asked);
    const Floats values = count == kLanes ? load(from) : load_part(from, count);
    return {_mm256_and_ps(_mm256_castsi256_ps(is_in), values.value)};
  }

  void store(float* to) const { _mm256_storeu_ps(to, value); }
  void store(BFloat16* to) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow()); }
  // Past the caches; `to` is aligned to a vector.
  void stream(float* to) const { _mm256_stream_ps(to, value); }
  void stream(BFloat16* to) const { _mm_stream_si128(reinterpret_cast<__m128i*>(to), narrow()); }
  void store(Half* to) const {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  template <typename T>
  void store_part(T* to, int64_t count) const {
    alignas(32) T part[kLanes];
    store(part);
    std::memcpy(static_cast<void*>(to), part, count * sizeof(T));
  }

 private:
  // The nearest bfloat16 values, ties to even.
  __m128i narrow() const {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i to_even = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, to_even), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  }
};

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.value, b.value)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.value, b.value)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.value, b.value)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.value, b.value)}; }
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.value, b.value, c.value)};
}
inline Floats subtract_product(Floats c, Floats a, Floats b) {
  return {_mm256_fnmadd_ps(a.value, b.value, c.value)};
}

// See vectors_any.inl. Of two zeros, and with NaN, the instruction takes the second.
inline Floats rectified(Floats value) { return {_mm256_max_ps(_mm256_setzero_ps(), value.value)}; }
inline Floats where_positive(Floats value, Floats passed) {
  const __m256 is_not = _mm256_cmp_ps(value.value, _mm256_setzero_ps(), _CMP_LE_OQ);
  return {_mm256_andnot_ps(is_not, passed.value)};
}
inline Floats larger(Floats a, Floats b) {
  const __m256 is_nan = _mm256_cmp_ps(b.value, b.value, _CMP_UNORD_Q);
  return {_mm256_blendv_ps(_mm256_max_ps(b.value, a.value), b.value, is_nan)};
}
template <bool kAll>
inline void take_larger(Floats& best, Floats& winners, Floats value, Floats bit) {
  const __m256 is_larger = _mm256_or_ps(
      _mm256_cmp_ps(value.value, best.value, _CMP_GT_OQ),
      _mm256_cmp_ps(value.value, value.value, _CMP_UNORD_Q));
  best.value = _mm256_blendv_ps(best.value, value.value, is_larger);
  if constexpr (kAll) {
    const __m256 is_equal = _mm256_cmp_ps(value.value, best.value, _CMP_EQ_OQ);
    winners.value = _mm256_add_ps(
        _mm256_andnot_ps(is_larger, winners.value), _mm256_and_ps(is_equal, bit.value));
  } else {
    winners.value = _mm256_blendv_ps(winners.value, bit.value, is_larger);
  }
}
inline void store_bits(Floats bits, int16_t* to, int64_t count) {
  const __m256i whole = _mm256_cvttps_epi32(bits.value);
  alignas(16) int16_t part[Floats::kLanes];
  _mm_store_si128(
      reinterpret_cast<__m128i*>(part),
      _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
  std::memcpy(to, part, count * sizeof(int16_t));
}
// Lanes kShift to kShift + 7 of the 16 lanes of a and b.
template <int kShift>
inline Floats shifted(Floats a, Floats b) {
  const __m256i low = _mm256_castps_si256(a.value), high = _mm256_castps_si256(b.value);
  const __m256i middle = _mm256_permute2x128_si256(low, high, 0x21);
  if constexpr (kShift < 4) {
    return {_mm256_castsi256_ps(_mm256_alignr_epi8(middle, low, 4 * kShift))};
  } else {
    return {_mm256_castsi256_ps(_mm256_alignr_epi8(high, middle, 4 * (kShift - 4)))};
  }
}

inline __m256 lanes(__m256 from, int i0, int i1, int i2, int i3, int i4, int i5, int i6, int i7) {
  return _mm256_permutevar8x32_ps(from, _mm256_setr_epi32(i0, i1, i2, i3, i4, i5, i6, i7));
}
// See vectors_any.inl.
inline void reverse_pixels(Floats* pixels) {
  const __m256 a = pixels[0].value, b = pixels[1].value, c = pixels[2].value;
  const __m256 last = lanes(c, 5, 6, 7, 2, 3, 4, 0, 0);
  const __m256 middle = lanes(b, 0, 4, 5, 6, 1, 2, 3, 0);
  const __m256 first = lanes(a, 7, 0, 3, 4, 5, 0, 1, 2);
  pixels[0].value = _mm256_blend_ps(last, _mm256_set1_ps(b[7]), 0x40);
  pixels[1].value = _mm256_blend_ps(
      _mm256_blend_ps(middle, _mm256_set1_ps(c[1]), 0x01), _mm256_set1_ps(a[6]), 0x80);
  pixels[2].value = _mm256_blend_ps(first, _mm256_set1_ps(b[0]), 0x02);
}

// The estimate has 12 bits; each of two Newton steps doubles them.
inline __m256 inverse_root(__m256 base) {
  const __m256 half = _mm256_mul_ps(base, _mm256_set1_ps(0.5f));
  const __m256 three_halves = _mm256_set1_ps(1.5f);
  __m256 root = _mm256_rsqrt_ps(base);
  for (int step = 0; step < 2; ++step) {
    root = _mm256_mul_ps(root, _mm256_fnmadd_ps(_mm256_mul_ps(half, root), root, three_halves));
  }
  return root;
}

// base^-3/4 and, where asked for, 1 / base. Newton's step makes NaN of an infinite base: zero
// there.
template <bool kInverse, int kCount>
inline void inverse_three_quarters(const Floats* base, Floats* power, Floats* inverse) {
  const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  REPLICA_EACH {
    const __m256 keep = _mm256_cmp_ps(base[i].value, infinity, _CMP_NEQ_UQ);
    const __m256 root = inverse_root(base[i].value);
    if constexpr (kInverse) {
      inverse[i].value = _mm256_and_ps(keep, _mm256_mul_ps(root, root));
    }
    power[i].value =
        _mm256_and_ps(keep, _mm256_mul_ps(_mm256_mul_ps(root, inverse_root(root)), root));
  }
}

// What the loops for n = 5, beta = 3/4 work with, for values of type T in memory.
template <typename T>
using PaperVector = Floats;
