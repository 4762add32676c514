#pragma once
// Covers of a placement with given lists: which ranks score a part's
// candidates, and how many each.

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/bit_rows.hpp"
#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::scheduler {

class CoverTable {
 public:
  /// Local. O(parts * (M + ranks)) time and memory. Throws
  /// Error(ExitCode::failure) when the placement does not belong to the lists.
  CoverTable(const RoutingTrace& trace, const Placement& placement);

  int64_t parts() const { return std::ssize(begin_) - 1; }
  /// Ranks of a part's cover, ascending, and how many candidates each scores.
  std::span<const int32_t> ranks(int64_t part) const { return slice(rank_, part); }
  std::span<const int32_t> candidates(int64_t part) const { return slice(candidates_, part); }
  int32_t size(int64_t part) const { return static_cast<int32_t>(begin_[part + 1] - begin_[part]); }
  /// Place of a rank in the cover, or -1.
  int32_t index_of(int64_t part, int rank) const { return index_[part * ranks_ + rank]; }
  /// Place in the cover of the rank that scores each list entry. Shape: [M]
  std::span<const int16_t> scorer(int64_t part) const {
    return {scorer_.data() + part * length_, static_cast<std::size_t>(length_)};
  }
  std::span<const uint64_t> rank_set(int64_t part) const { return sets_.row(part); }

 private:
  std::span<const int32_t> slice(const std::vector<int32_t>& of, int64_t part) const {
    return {of.data() + begin_[part], static_cast<std::size_t>(size(part))};
  }

  int ranks_;
  int64_t length_;
  std::vector<int64_t> begin_;  // [parts + 1]
  std::vector<int32_t> rank_, candidates_;
  std::vector<int16_t> index_;   // [parts, ranks]
  std::vector<int16_t> scorer_;  // [parts, M]
  BitRows sets_;                 // [parts] of ranks
};

/// Local. Experts that each rank owns.
std::vector<int64_t> owned_by_rank(const Placement& placement);

/// Local. Homes by contiguous blocks of expert ids, one part per codeword, no
/// copies.
Placement block_placement(int64_t experts, int64_t codewords, int ranks);
/// Local. The same with experts spread at random: homes are a permutation drawn
/// from `seed`.
Placement random_placement(int64_t experts, int64_t codewords, int ranks, uint64_t seed);

}  // namespace airmoe::scheduler
