#pragma once
// Scores as integers of the same order: NaN as minus infinity, -0 as +0.

#include <cmath>
#include <cstdint>

namespace airmoe::router::cuda {

/// Larger keys are larger scores.
__device__ __forceinline__ uint32_t order_key(float score) {
  const float value = score == score ? score + 0.0f : -INFINITY;
  const uint32_t bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float score_of_key(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7FFFFFFFu : ~key);
}

}  // namespace airmoe::router::cuda
