#pragma once
// What the router hands to the experts on a device: tokens sorted by codeword, cut into tiles, and
// the selected pairs. Views of device memory; host code must not read through them.

#include <cstdint>

namespace airmoe::cuda {

/// Most tokens of a tile. All tokens of a tile have the same codeword, so they share candidates.
inline constexpr int kTileTokens = 32;

/// Upper bound of the number of tiles of n tokens with G codewords.
constexpr int64_t max_tiles(int64_t tokens, int64_t codewords) {
  const int64_t whole = tokens / kTileTokens;
  return whole + (codewords < tokens ? codewords : tokens);
}

/// A place is an index into the tokens sorted by codeword, then by token.
struct CodewordTokens {
  int64_t tokens = 0;              ///< n
  int64_t codewords = 0;           ///< G
  int64_t tile_limit = 0;          ///< max_tiles(n, G): launch this many blocks
  const int32_t* token = nullptr;  ///< token of a place. Shape: [n]
  const int32_t* begin = nullptr;  ///< first place of a codeword. Shape: [G + 1]
  const int32_t* tiles = nullptr;  ///< number of tiles; the rest of the blocks return. Shape: [1]
  const int32_t* tile_codeword = nullptr;  ///< Shape: [tile_limit]
  const int32_t* tile_begin = nullptr;     ///< first place of a tile. Shape: [tile_limit]
  const int32_t* tile_end = nullptr;       ///< behind its last place. Shape: [tile_limit]
};

/// The shortlists: row g holds the candidates of codeword g in ascending expert id.
struct DeviceLists {
  int64_t length = 0;            ///< M <= 65,536
  const int32_t* id = nullptr;   ///< expert ids. Shape: [G, M]
  const int32_t* row = nullptr;  ///< their rows in the tables of this device; on one rank the ids
};

/// K pairs per place: position p of a pair is an index into the list of the place's codeword.
struct SelectedPairs {
  int64_t active = 0;                  ///< K
  const uint16_t* position = nullptr;  ///< ascending per place. Shape: [n, K]
  const float* gate = nullptr;         ///< Shape: [n, K]
};

}  // namespace airmoe::cuda
