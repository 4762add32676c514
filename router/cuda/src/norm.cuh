#pragma once
// Dot products of rows in double precision with the additions of router/src/norm.hpp in the same
// order: eight chains, one for each lane of a group of eight.

#include <cstdint>

#include <cuda_bf16.h>

namespace airmoe::router::cuda {

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// The total of eight chains, lane j % 8 holding chain j; every lane of the group gets it. All
/// lanes of the warp must call.
__device__ __forceinline__ double add_chains(double chain) {
  chain = __dadd_rn(chain, __shfl_xor_sync(0xFFFFFFFFu, chain, 4));
  chain = __dadd_rn(chain, __shfl_xor_sync(0xFFFFFFFFu, chain, 2));
  return __dadd_rn(chain, __shfl_xor_sync(0xFFFFFFFFu, chain, 1));
}

/// |x| of `count` elements, chain = lane % 8. The product of two floats is exact in double, so that
/// fused multiply-adds round as a multiplication and an addition do.
template <class T>
__device__ __forceinline__ double group_norm(const T* x, int count, int chain) {
  double sum = 0.0;
#pragma unroll 8
  for (int k = chain; k < count; k += 8) {
    const double value = to_float(x[k]);
    sum = __fma_rn(value, value, sum);
  }
  return __dsqrt_rn(add_chains(sum));
}

/// `sum` and the squares of eight bf16, in their order.
__device__ __forceinline__ float add_squares(float sum, uint4 v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (const uint32_t word : words) {
    const float low = __uint_as_float(word << 16), high = __uint_as_float(word & 0xFFFF0000u);
    sum = fmaf(low, low, fmaf(high, high, sum));
  }
  return sum;
}

/// Element of a row divided by its norm, as the host rounds it.
__device__ __forceinline__ float scaled(float x, double inverse_norm) {
  return static_cast<float>(__dmul_rn(static_cast<double>(x), inverse_norm));
}

}  // namespace airmoe::router::cuda
