#pragma once
// RandomPermutation of comm/base/random.hpp in device code.

#include <bit>
#include <cstdint>

#include "comm/base/cuda/philox.cuh"
#include "comm/base/random.hpp"

namespace airmoe::cuda {

/// A pseudo-random bijection of [0, size), the same as the host's; passed to kernels by value.
class DevicePermutation {
 public:
  DevicePermutation(const RandomStream& stream, uint64_t size)
      : key0_(stream.key()[0]), key1_(stream.key()[1]), size_(size) {
    const uint32_t bits = size > 1 ? static_cast<uint32_t>(std::bit_width(size - 1)) : 1;
    half_bits_ = (bits + 1) / 2;
  }

  /// i < size.
  __device__ uint64_t operator()(uint64_t i) const {
    constexpr uint32_t kPermutationBlocks = 0x7065726d;
    const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << half_bits_) - 1);
    do {
      uint32_t left = static_cast<uint32_t>(i >> half_bits_);
      uint32_t right = static_cast<uint32_t>(i) & mask;
      for (uint32_t round = 0; round < 8; ++round) {
        const uint32_t mixed = philox(right, round, half_bits_, kPermutationBlocks, key0_, key1_).x;
        const uint32_t next = (left ^ mixed) & mask;
        left = right;
        right = next;
      }
      i = (uint64_t{left} << half_bits_) | right;
    } while (i >= size_);
    return i;
  }

 private:
  uint32_t key0_, key1_;
  uint64_t size_;
  uint32_t half_bits_;
};

}  // namespace airmoe::cuda
