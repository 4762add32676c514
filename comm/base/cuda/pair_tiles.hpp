#pragma once
// Which candidates the tokens of each tile have selected, as bits: what the tensor-core kernels
// over selected pairs work from. Candidates that no token of a tile selects are left out, so that
// their rows are neither read nor multiplied. Built once per selection, used by forward and
// backward.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::cuda {

/// A view of device memory. The used candidates of a tile are numbered in list order; the last
/// chunk of kTileChunk of them is filled up with row -1 that no token selects.
struct PairTiles {
  CodewordTokens tokens;
  DeviceLists lists;
  const uint16_t* position = nullptr;  ///< as given to build(). Shape: [n, K]
  int64_t active = 0;                  ///< K
  int64_t width = 0;              ///< W >= used candidates of any tile, a multiple of kTileChunk
  const int32_t* used = nullptr;  ///< number of used candidates. Shape: [tiles]
  const int32_t* row = nullptr;   ///< their rows in the tables. Shape: [tiles, W]
  const uint32_t* mask =
      nullptr;  ///< bit c % 32 of word c / 32: selects c. [tiles, W / 32, 32 tokens]
  const uint16_t* first = nullptr;  ///< pairs of the token before that word. [tiles, W / 32, 32]

  int64_t pairs() const { return tokens.tokens * active; }
};

inline constexpr int kTileChunk = 128;

/// Owner of PairTiles. Memory: 10 bytes x tile_limit x min(M, 32 K).
class DevicePairTiles {
 public:
  /// Asynchronous. `position` (ascending per place) and what `tokens` and `lists` point to must
  /// stay as they are while the view is used. Throws Error unless 1 <= K <= M, K < 65,536 and n K <
  /// 2^31.
  void build(const CodewordTokens& tokens, const DeviceLists& lists, const uint16_t* position,
             int64_t active, cudaStream_t stream);
  PairTiles view() const { return view_; }

 private:
  DeviceBuffer<int32_t> used_, row_;
  DeviceBuffer<uint32_t> mask_;
  DeviceBuffer<uint16_t> first_;
  PairTiles view_;
};

}  // namespace airmoe::cuda
