#pragma once
// Draws of the router jitter in device code. A score s becomes __fadd_rn(s, jitter(...)), which has
// the very bits of add_jitter() on a host.

#include <cstdint>

#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/philox.cuh"

namespace airmoe::cuda {

/// The 16-bit draw at counter (id / 8, b, c), lane id % 8. Neighbouring ids share the Philox block:
/// callers that need all eight may take them from philox() themselves.
__device__ __forceinline__ uint32_t jitter_draw(const JitterKey& key, uint32_t id, uint32_t b,
                                                uint32_t c) {
  const uint4 block = philox(id >> 3, b, c, 0, key.key0, key.key1);
  const uint32_t low = (id & 2) != 0 ? block.y : block.x;
  const uint32_t high = (id & 2) != 0 ? block.w : block.z;
  const uint32_t word = (id & 4) != 0 ? high : low;
  return (id & 1) != 0 ? word >> 16 : word & 0xFFFFu;
}

/// stddev times the normal number of a 16-bit draw.
__device__ __forceinline__ float jitter_of_draw(const JitterKey& key, uint32_t draw) {
  const uint32_t sign = draw >> 15 << 31;
  const uint32_t magnitude = __float_as_uint(__ldg(key.quantile + (draw & 0x7FFFu)));
  return __fmul_rn(key.stddev, __uint_as_float(magnitude ^ sign));
}

/// The id of local token `token`.
__device__ __forceinline__ uint32_t jitter_id(const JitterKey& key, int32_t token) {
  return key.token_index != nullptr ? static_cast<uint32_t>(key.token_index[token])
                                    : key.first_token + static_cast<uint32_t>(token);
}

/// The jitter of `id`. Fine scores: id = jitter_id(token), b = expert id, c = codeword.
/// Lists: id = expert id, b = codeword, c = 0.
__device__ __forceinline__ float jitter(const JitterKey& key, uint32_t id, uint32_t b, uint32_t c) {
  return jitter_of_draw(key, jitter_draw(key, id, b, c));
}

}  // namespace airmoe::cuda
