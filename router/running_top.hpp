#pragma once
// The best `keep` entries of a stream of scores, for many rows at once: what lets a top-k over all
// experts run without an array over all experts.

#include <cstdint>

#include "comm/base/buffer.hpp"

namespace airmoe::router {

/// Per row a buffer of candidates above a threshold; when it fills up it is cut to the best `keep`
/// and the threshold rises to the worst of them, so that a scan of E random scores appends only
/// about keep * log2(E / keep) entries. Order: (score descending, id ascending); NaN counts as
/// minus infinity. The result does not depend on how the stream is cut into blocks.
class RunningTop {
 public:
  /// Starts `rows` empty rows; offers bring at most `block` entries each. keep >= 1.
  /// Memory: rows * (keep + max(keep, block) + block) * 8 bytes.
  void reset(int64_t rows, int64_t keep, int64_t block);

  /// No entry below this can enter the row any more; minus infinity while it is filling up.
  float threshold(int64_t row) const { return threshold_[row]; }

  /// Offers entries with ids first_id, first_id + 1, ... Ids of a row must ascend over all offers.
  void offer(int64_t row, const float* score, int32_t first_id, int64_t count);
  /// Offers entries with the given ascending ids.
  void offer(int64_t row, const float* score, const int32_t* id, int64_t count);

  /// Writes the row's best in order; returns how many, min(keep, entries offered). -0 is written as
  /// +0, NaN as minus infinity. The row is then used up. Shapes: [keep] each.
  int64_t finish(int64_t row, float* score, int32_t* id);

 private:
  void append(int64_t row, const float* score, const int32_t* id, int32_t first_id, int64_t count);
  void cut(int64_t row);

  int64_t keep_ = 0, capacity_ = 0;
  Buffer<float> threshold_, score_;
  Buffer<int32_t> id_;
  Buffer<int64_t> count_;
  Buffer<uint64_t> sort_;
};

}  // namespace airmoe::router
