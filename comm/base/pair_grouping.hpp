#pragma once
// The transpose of a selection: which tokens selected each candidate.

#include "comm/base/buffer.hpp"
#include "comm/base/selection.hpp"

namespace airmoe {

/// Pairs sorted by position, one group per position that some token selected. Positions are
/// places in a codeword's candidates or rows of a table, whatever the selection says. Built once
/// per selection, used by every product that adds to rows.
class PairGrouping {
 public:
  /// @param positions  every position is in [0, positions)
  /// Local. No allocation once the largest selection was seen. Work: O(pairs), and to sort the
  /// groups O(min(positions, groups log groups)); O(positions) once, when that number grows.
  void build(SelectionView selection, int64_t positions);

  int64_t pairs() const { return pair_.size(); }
  int64_t groups() const { return groups_; }
  int32_t position(int64_t group) const { return touched_[group]; }  ///< ascending
  int64_t begin(int64_t group) const { return group_begin_[group]; }
  int64_t end(int64_t group) const { return group_begin_[group + 1]; }
  int64_t largest_group() const { return largest_; }
  int64_t first_pair() const { return first_pair_; }  ///< offset[0] of the selection
  /// Index into the selection's arrays.
  int64_t pair(int64_t i) const { return first_pair_ + pair_[i]; }
  int32_t token(int64_t i) const { return token_[i]; }  ///< ascending within a group
  const int32_t* tokens() const { return token_.data(); }

 private:
  int64_t groups_ = 0, largest_ = 0, first_pair_ = 0;
  Buffer<int32_t> next_;  // [positions]: zero between calls
  Buffer<int32_t> touched_, token_, pair_;
  Buffer<int64_t> group_begin_;
  int64_t map_size_ = 0;
};

}  // namespace airmoe
