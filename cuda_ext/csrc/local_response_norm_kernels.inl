// The loops of local response normalisation, for the instruction set that is in force where this
// file is included: the compiler makes vector code of the loops over pixels or channels.
//
// T is float or double, and sums are of type T. Each output is computed from inputs alone, in a
// fixed order, so a cut of the work over threads changes no bit.

// (k + alpha * sum) ^ -beta; the paper's beta of 3/4 needs no logarithm.
template <typename T>
inline T power(T base, T beta, bool three_quarters) {
  if (three_quarters) {
    const T root = T(1) / std::sqrt(base);
    return root * std::sqrt(root);
  }
  return std::pow(base, -beta);
}

// sums[i] = sum of squares of the channels around i; `squares` begins `reach` zeros before them.
template <typename T>
inline void sum_windows(const T* squares, int64_t window, int64_t count, T* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] = squares[i];
  for (int64_t j = 1; j < window; ++j) {
    for (int64_t i = 0; i < count; ++i) sums[i] += squares[i + j];
  }
}

// Channels last: one pixel's channels of one tower are contiguous.
// scratch: 2 * (channels + 2 * reach) + 2 * channels values, of which the margins are zero.
template <typename T>
void forward_row(const T* x, int64_t channels, const Window<T>& w, T* scratch, T* out) {
  T* padded = scratch;
  T* sums = scratch + 2 * (channels + 2 * w.reach);
  T* squares = padded + w.reach;
  for (int64_t c = 0; c < channels; ++c) squares[c] = x[c] * x[c];
  sum_windows(padded, 2 * w.reach + 1, channels, sums);
  if (w.three_quarters) {
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = x[c] * power(w.k + w.alpha * sums[c], w.beta, true);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = x[c] * power(w.k + w.alpha * sums[c], w.beta, false);
    }
  }
}

// gradient of x_c = g_c p_c - 2 alpha beta x_c * sum over the window of g x p / base, p =
// base^-beta
template <typename T>
void backward_row(
    const T* gradient, const T* x, int64_t channels, const Window<T>& w, T* scratch, T* out) {
  T* padded = scratch;
  T* padded_ratios = scratch + channels + 2 * w.reach;
  T* sums = scratch + 2 * (channels + 2 * w.reach);
  T* powers = sums + channels;
  T* squares = padded + w.reach;
  T* ratios = padded_ratios + w.reach;
  for (int64_t c = 0; c < channels; ++c) squares[c] = x[c] * x[c];
  sum_windows(padded, 2 * w.reach + 1, channels, sums);
  for (int64_t c = 0; c < channels; ++c) {
    const T base = w.k + w.alpha * sums[c];
    powers[c] = gradient[c] * power(base, w.beta, w.three_quarters);
    ratios[c] = powers[c] * x[c] / base;
  }
  sum_windows(padded_ratios, 2 * w.reach + 1, channels, sums);
  const T factor = T(2) * w.alpha * w.beta;
  for (int64_t c = 0; c < channels; ++c) out[c] = powers[c] - factor * x[c] * sums[c];
}

// Channels first: sums of squares of one plane of `pixels` values, over the channels around c.
template <typename T>
inline void sum_planes(
    const T* x, int64_t c, int64_t channels, int64_t pixels, int64_t reach, T* sums) {
  const int64_t first = std::max<int64_t>(0, c - reach);
  const int64_t last = std::min(channels - 1, c + reach);
  for (int64_t i = 0; i < pixels; ++i) sums[i] = x[first * pixels + i] * x[first * pixels + i];
  for (int64_t j = first + 1; j <= last; ++j) {
    const T* plane = x + j * pixels;
    for (int64_t i = 0; i < pixels; ++i) sums[i] += plane[i] * plane[i];
  }
}

// One tower of one image; scratch: pixels values.
template <typename T>
void forward_planes(
    const T* x, int64_t channels, int64_t pixels, const Window<T>& w, T* scratch, T* out) {
  for (int64_t c = 0; c < channels; ++c) {
    sum_planes(x, c, channels, pixels, w.reach, scratch);
    const T* plane = x + c * pixels;
    T* result = out + c * pixels;
    for (int64_t i = 0; i < pixels; ++i) {
      result[i] = plane[i] * power(w.k + w.alpha * scratch[i], w.beta, w.three_quarters);
    }
  }
}

// One tower of one image; scratch: (2 * channels + 1) * pixels values.
template <typename T>
void backward_planes(
    const T* gradient, const T* x, int64_t channels, int64_t pixels, const Window<T>& w, T* scratch,
    T* out) {
  T* sums = scratch;
  T* powers = scratch + pixels;
  T* ratios = powers + channels * pixels;
  for (int64_t c = 0; c < channels; ++c) {
    sum_planes(x, c, channels, pixels, w.reach, sums);
    const int64_t at = c * pixels;
    for (int64_t i = 0; i < pixels; ++i) {
      const T base = w.k + w.alpha * sums[i];
      powers[at + i] = gradient[at + i] * power(base, w.beta, w.three_quarters);
      ratios[at + i] = powers[at + i] * x[at + i] / base;
    }
  }
  const T factor = T(2) * w.alpha * w.beta;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t first = std::max<int64_t>(0, c - w.reach);
    const int64_t last = std::min(channels - 1, c + w.reach);
    const int64_t at = c * pixels;
    for (int64_t i = 0; i < pixels; ++i) sums[i] = ratios[first * pixels + i];
    for (int64_t j = first + 1; j <= last; ++j) {
      for (int64_t i = 0; i < pixels; ++i) sums[i] += ratios[j * pixels + i];
    }
    for (int64_t i = 0; i < pixels; ++i) {
      out[at + i] = powers[at + i] - factor * x[at + i] * sums[i];
    }
  }
}
