#pragma once
// Tokens on a device in the order of their codewords, cut into tiles.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::router::cuda {

/// Stable counting sort of tokens by codeword. Memory: 4 bytes times n + 3 * max_tiles(n, G) +
/// G * (n / 256 + 2), the last at most G * (n / 1024 + 2) above 16,384 tokens.
class DeviceOrder {
 public:
  /// Local; asynchronous on `stream`. The views given out before are invalid.
  /// @param codeword  each in [0, codewords). Shape: [n], n >= 0
  void build(const int32_t* codeword, int64_t n, int64_t codewords, cudaStream_t stream);

  /// Of the last build(); valid until the next one.
  airmoe::cuda::CodewordTokens view() const { return view_; }

 private:
  airmoe::cuda::DeviceBuffer<int32_t> token_, begin_, tiles_, counts_;
  airmoe::cuda::CodewordTokens view_;
};

}  // namespace airmoe::router::cuda
