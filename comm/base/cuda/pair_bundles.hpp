#pragma once
// Selected pairs by bundles of rows: sums over the pairs of one row read every token that selected
// it; a bundle of rows that the same tokens selected reads such a token once for all its rows.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::cuda {

/// Rows of a bundle: the rows of one tensor-core tile.
inline constexpr int kBundleRows = 16;

/// A view of device memory: the pairs of a range of places, sorted by bundle, then by place. Rows
/// are numbered anew, by rank; bundle b has ranks [16 b, 16 b + 16).
struct PairBundles {
  int64_t rows = 0, pairs = 0;
  int64_t active = 0;               ///< K: pair / K is the place
  const int32_t* pair = nullptr;    ///< index into [n, K] arrays. Shape: [pairs]
  const int32_t* rank = nullptr;    ///< of that pair's row. Shape: [pairs]
  const int32_t* row = nullptr;     ///< row of a rank. Shape: [rows]
  const int32_t* offset = nullptr;  ///< first entry of a bundle. Shape: [bundles + 1]
  const int32_t* token = nullptr;   ///< token of a place, as in CodewordTokens. Shape: [n]

  int64_t bundles() const { return (rows + kBundleRows - 1) / kBundleRows; }
};

/// Owner of PairBundles; grows to the largest selection. Memory: 16 bytes per pair, 20 per row and
/// a quarter of a byte per row and slice.
class DevicePairBundles {
 public:
  /// Ranks follow the codeword one of whose tiles selected the row most often (ties: the larger
  /// codeword), then the row; rows that nothing selected come first. Asynchronous. Rows of the
  /// lists are in [0, rows). Throws Error when n K >= 2^31.
  /// @param slice  places whose pairs are sorted together, the last slice may have fewer; 0: all
  void build(const CodewordTokens& tokens, const DeviceLists& lists, const uint16_t* position,
             int64_t active, int64_t rows, cudaStream_t stream, int64_t slice = 0);
  /// One view per slice, in order of places; at least one. `tokens.token` given to build() must
  /// still be there.
  std::span<const PairBundles> slices() const { return slices_; }

 private:
  const int32_t* rank_rows(const CodewordTokens& tokens, const DeviceLists& lists,
                           const uint16_t* position, int64_t active, int64_t rows,
                           cudaStream_t stream);

  DeviceBuffer<uint32_t> home_[2];  // of a row: what ranks follow
  DeviceBuffer<int32_t> row_[2], rank_, offset_;
  DeviceBuffer<uint32_t> key_[2];
  DeviceBuffer<int32_t> pair_[2];
  DeviceBuffer<unsigned char> scratch_;
  std::vector<PairBundles> slices_;
};

}  // namespace airmoe::cuda
