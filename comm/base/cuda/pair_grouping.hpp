#pragma once
// The transpose of a selection on a device: which pairs selected each row of a table.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::cuda {

/// A view of device memory: pairs sorted by row, then by place.
struct PairGroups {
  int64_t rows = 0, pairs = 0;
  int64_t active = 0;               ///< K: pair / K is the place
  const int32_t* pair = nullptr;    ///< index into [n, K] arrays. Shape: [pairs]
  const int32_t* row = nullptr;     ///< of that pair. Shape: [pairs]
  const int32_t* offset = nullptr;  ///< first entry of a row. Shape: [rows + 1]
  const int32_t* token = nullptr;   ///< token of a place, as in CodewordTokens. Shape: [n]
};

/// Owner of PairGroups; grows to the largest selection. Memory: 16 bytes per pair, 4 per row.
class DevicePairGrouping {
 public:
  /// Asynchronous. Rows of the lists are in [0, rows). Throws Error when n K >= 2^31.
  void build(const CodewordTokens& tokens, const DeviceLists& lists, const uint16_t* position,
             int64_t active, int64_t rows, cudaStream_t stream);
  /// `tokens.token` given to build() must still be there.
  PairGroups view() const { return view_; }

 private:
  DeviceBuffer<uint32_t> row_[2];
  DeviceBuffer<int32_t> pair_[2], offset_;
  DeviceBuffer<unsigned char> scratch_;
  PairGroups view_;
};

}  // namespace airmoe::cuda
