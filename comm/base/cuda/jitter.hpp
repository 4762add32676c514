#pragma once
// Router jitter on a device: the same bits as add_jitter() of comm/base/random.hpp. Plain C++; the
// draws themselves are in jitter.cuh.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/random.hpp"

namespace airmoe::cuda {

/// What a kernel needs to draw: passed by value.
struct JitterKey {
  uint32_t key0 = 0, key1 = 0;  ///< of the stream
  float stddev = 0.0f;
  uint32_t first_token = 0;         ///< global index of this device's token 0, for ids of tokens
  const float* quantile = nullptr;  ///< device memory. Shape: [32,768]
  /// Global index of every token, for tokens that came from several ranks; nullptr: in order from
  /// first_token. Device memory.
  const int32_t* token_index = nullptr;
};

/// The table of quantiles on the current device, 128 KiB; one per device is enough.
class JitterTable {
 public:
  /// Local: allocates and uploads on `stream`.
  explicit JitterTable(cudaStream_t stream);

  /// Local: the key of a stream's jitter. Valid while the table lives.
  JitterKey key(const RandomStream& stream, float stddev, int64_t first_token = 0) const;

 private:
  DeviceBuffer<float> quantile_;
};

}  // namespace airmoe::cuda
