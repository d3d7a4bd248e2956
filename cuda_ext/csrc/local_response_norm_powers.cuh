// The powers that all kernels of local response normalization divide by, and the paper's window.
#pragma once

#include "local_response_norm_problem.h"

namespace local_response_norm_cuda {

using local_response_norm::Problem;

constexpr int kReach = 2;  // n = 5

// base^-beta and 1 / base.
//
// For beta = 3/4 the product of two hardware estimates is put right by one step; the step makes NaN
// of an infinite base, where both are zero.
template <typename A>
struct Powers {
  A power, inverse;
};
__device__ inline Powers<float> inverse_three_quarters(float base) {
  if (isinf(base)) return {0.0f, 0.0f};
  const float root = rsqrtf(base);
  const float estimate = root * rsqrtf(root) * root;
  const float rooted = base * estimate * estimate;
  const float power = fmaf(0.25f * estimate, fmaf(-base, rooted * rooted, 1.0f), estimate);
  const float exact = base * power * power;  // base^-1/2
  return {power, exact * exact};
}
__device__ inline Powers<float> inverse_powers(float base, const Problem<float>& p) {
  if (!p.three_quarters) return {powf(base, -p.beta), 1.0f / base};
  return inverse_three_quarters(base);
}
__device__ inline Powers<double> inverse_powers(double base, const Problem<double>& p) {
  if (!p.three_quarters) return {pow(base, -p.beta), 1.0 / base};
  const double root = 1.0 / sqrt(base);
  return {root * sqrt(root), 1.0 / base};
}

}  // namespace local_response_norm_cuda
