#pragma once
// One AdamW update of an element.

#include <cuda_bf16.h>

#include "scheduler/cuda/expert_rows.hpp"

namespace airmoe::scheduler::cuda {

// Rounded after every operation, as on the host: no fused multiply-add.
__device__ __forceinline__ void update(const AdamwRates& r, float keep_value, float scale,
                                       float& value, float gradient, float& moment1,
                                       float& moment2) {
  const float g = __fmul_rn(gradient, scale);
  moment1 = __fadd_rn(__fmul_rn(r.keep1, moment1), __fmul_rn(r.add1, g));
  moment2 = __fadd_rn(__fmul_rn(r.keep2, moment2), __fmul_rn(r.add2, __fmul_rn(g, g)));
  const float root = __fadd_rn(__fmul_rn(__fsqrt_rn(moment2), r.root2), r.epsilon);
  value = __fsub_rn(__fmul_rn(keep_value, value), __fdiv_rn(__fmul_rn(r.rate1, moment1), root));
}

/// Four neighbouring elements.
__device__ __forceinline__ void update(const AdamwRates& r, float keep_value, float scale,
                                       float4& value, const float4& gradient, float4& moment1,
                                       float4& moment2) {
  update(r, keep_value, scale, value.x, gradient.x, moment1.x, moment2.x);
  update(r, keep_value, scale, value.y, gradient.y, moment1.y, moment2.y);
  update(r, keep_value, scale, value.z, gradient.z, moment1.z, moment2.z);
  update(r, keep_value, scale, value.w, gradient.w, moment1.w, moment2.w);
}

__device__ __forceinline__ void store_copy(__nv_bfloat16* to, const float4& v) {
  const __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pair);
}
__device__ __forceinline__ void store_copy(float*, const float4&) {}

}  // namespace airmoe::scheduler::cuda
