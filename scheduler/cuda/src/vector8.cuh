#pragma once
// Eight consecutive elements of a row per thread: 16 bytes of bf16, 32 of float. Sums over a warp
// in a fixed order. Device code only.

#include <cstdint>

#include <cuda_bf16.h>

namespace airmoe::scheduler::cuda {

inline constexpr int kWarp = 32;

/// `from` is aligned to eight elements.
__device__ __forceinline__ void load8(const float* from, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void load8(const __nv_bfloat16* from, float (&x)[8]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(from);
  const __nv_bfloat162* pair = reinterpret_cast<const __nv_bfloat162*>(&packed);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = __bfloat1622float2(pair[i]);
    x[2 * i] = two.x;
    x[2 * i + 1] = two.y;
  }
}

__device__ __forceinline__ void store8(float* to, const float (&x)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void store8(__nv_bfloat16* to, const float (&x)[8]) {
  uint4 packed;
  __nv_bfloat162* pair = reinterpret_cast<__nv_bfloat162*>(&packed);
#pragma unroll
  for (int i = 0; i < 4; ++i) pair[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = packed;
}

/// The same sum on every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

}  // namespace airmoe::scheduler::cuda
