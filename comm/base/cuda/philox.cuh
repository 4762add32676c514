#pragma once
// Philox4x32-10 (Random123) for device code: the blocks of RandomStream.

#include <cstdint>

namespace airmoe::cuda {

/// Four uniform words at counter (a, b, c, d) of the stream with this key.
__device__ __forceinline__ uint4 philox(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                        uint32_t key0, uint32_t key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * a;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c;
    a = static_cast<uint32_t>(product1 >> 32) ^ b ^ key0;
    b = static_cast<uint32_t>(product1);
    c = static_cast<uint32_t>(product0 >> 32) ^ d ^ key1;
    d = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return make_uint4(a, b, c, d);
}

}  // namespace airmoe::cuda
