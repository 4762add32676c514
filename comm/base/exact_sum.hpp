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

}  // namespace airmoe
