#pragma once
// How the grouped path lays out the hidden units of a pair.

#include "comm/base/panel.hpp"

namespace airmoe::experts {

/// Tiles hold an expert's m hidden units along the vector lanes, so they pay from about a third of
/// a vector on. Below that, pairs are computed one dot product at a time.
inline constexpr int64_t kTileMinUnits = 6;

/// Floats from one pair to the next in a compact array.
constexpr int64_t unit_stride(int64_t m) {
  return m >= kTileMinUnits ? tile_ld(m) : m;
}

}  // namespace airmoe::experts
