#pragma once
// The transpose of a selection on a device: which pairs selected each row of a table.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::cuda {

/// A view of device memory: the pairs of a range of places, sorted by row, then by place.
struct PairGroups {
  int64_t rows = 0, pairs = 0;
  int64_t active = 0;               ///< K: pair / K is the place
  const int32_t* pair = nullptr;    ///< index into [n, K] arrays. Shape: [pairs]
  const int32_t* row = nullptr;     ///< of that pair. Shape: [pairs]
  const int32_t* offset = nullptr;  ///< first entry of a row. Shape: [rows + 1]
  const int32_t* token = nullptr;   ///< token of a place, as in CodewordTokens. Shape: [n]
};

/// Owner of PairGroups; grows to the largest selection. Memory: 16 bytes per pair, 4 per row and
/// slice.
class DevicePairGrouping {
 public:
  /// Asynchronous. Rows of the lists are in [0, rows). Throws Error when n K >= 2^31.
  /// @param slice  places whose pairs are sorted together, the last slice may have fewer; 0: all
  void build(const CodewordTokens& tokens, const DeviceLists& lists, const uint16_t* position,
             int64_t active, int64_t rows, cudaStream_t stream, int64_t slice = 0);
  /// One view per slice, in order of places; at least one. `tokens.token` given to build() must
  /// still be there.
  std::span<const PairGroups> slices() const { return slices_; }
  /// The first slice: all pairs where build() made one.
  const PairGroups& view() const { return slices_.front(); }

 private:
  DeviceBuffer<uint32_t> row_[2];
  DeviceBuffer<int32_t> pair_[2], offset_;
  DeviceBuffer<unsigned char> scratch_;
  std::vector<PairGroups> slices_;
};

}  // namespace airmoe::cuda
