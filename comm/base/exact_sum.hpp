#pragma once
// Sums of doubles that are exact and therefore independent of order: every term is rounded to a
// multiple of a common quantum first.

#include <cmath>
#include <cstdint>

namespace airmoe {

/// Adding and subtracting this rounds a double below 2^51 q to a multiple of q, a power of two.
constexpr double rounding_constant(double quantum) {
  return quantum * 6755399441055744.0;
}  // 1.5 * 2^52

/// x as a multiple of the quantum whose rounding_constant() is given. Larger x lose more bits,
/// gracefully; NaN and infinities stay.
inline double round_to_quantum(double x, double constant) {
  return (x + constant) - constant;
}

/// A coefficient with a bit set 50 places below its first: its products with floats are never half
/// way between two multiples of a quantum q (below 2^49 q), where rounding them inside a chain of
/// additions would look at the sum.
constexpr double untied(float coefficient) {
  return static_cast<double>(coefficient) * (1.0 + 0x1p-50);
}

/// 2^exponent times the power of two at or below the largest |x[i]|; 2^exponent for all zeros.
inline double quantum_below(const float* x, int64_t count, int exponent) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return std::ldexp(
      1.0, (largest > 0.0f && std::isfinite(largest) ? std::ilogb(largest) : 0) + exponent);
}

/// Quantum of experts' outputs: sums below 32 are exact.
inline constexpr double kOutputQuantum = 0x1p-46;
/// Exponent of the quantum of hidden-state gradients against the largest element of the token's
/// output gradient: sums below 2^9 times that are exact.
inline constexpr int kGradientExponent = -44;
/// Quantum of trunk gradients of one sequence: sums below 16 are exact.
inline constexpr double kTrunkQuantum = 0x1p-49;

/// Quantum of the gradients of one of E experts and of its centroid, about 2^-44 / sqrt(E): sums
/// below 2^7 / sqrt(E) are exact. A typical expert sees K / E of the tokens with gates of 1 / K, so
/// its gradients are about 1 / E of a dense layer's, and the quantum must be far below that; an
/// expert that all tokens select has gradients like a dense layer's whatever E is, and the bound
/// must be above that. In the first 40 steps of the default run (E = 4,096) the root mean square of
/// nonzero elements was 0.5 to 5 / E and the largest 194 / E, where the bound is 8,192 / E.
constexpr double expert_gradient_quantum(int64_t experts) {
  int doublings = 0;  // log2 of E, rounded up
  while (doublings < 62 && (int64_t{1} << doublings) < experts) ++doublings;
  double quantum = 0x1p-44;
  for (int i = 0; i < doublings / 2; ++i) quantum *= 0.5;
  return quantum;
}

/// Quantum of a softmax's normaliser, the sum of K terms in (0, 1] of which the largest is 1: exact
/// for every K <= 8192, and to 2^-40 K of itself.
inline constexpr double kNormaliserQuantum = 0x1p-40;

}  // namespace airmoe
