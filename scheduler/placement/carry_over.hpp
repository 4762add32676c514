#pragma once
// What becomes of a part's candidate ranks when its shortlist is rebuilt, between two plans.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"

namespace airmoe::scheduler {

/// Local. Keeps one 16-bit word per expert as working memory.
class CarryOver {
 public:
  explicit CarryOver(int64_t experts) : rank_of_expert_(experts, kNone) {}

  /// Ranks that score the entries of a rebuilt list. An entry that stayed keeps its rank. A new one
  /// goes to its owner if the owner scores an entry that stayed or is the primary, else to the
  /// primary. O(M), no allocation.
  /// @param old_list  the list before, distinct experts. Shape: [M]
  /// @param old_rank  rank of each of its entries.       Shape: [M]
  /// @param new_list  the list now, distinct experts.    Shape: [M]
  /// @param home      owner of each expert.              Shape: [E]
  /// @param primary   rank of the part for new entries
  /// @param ranks     R
  /// @param new_rank  (out) rank of each new entry; may not overlap old_rank. Shape: [M]
  /// @return entries that are new
  int64_t operator()(std::span<const int32_t> old_list, std::span<const uint16_t> old_rank,
                     std::span<const int32_t> new_list, std::span<const int32_t> home, int primary,
                     int ranks, std::span<uint16_t> new_rank);

 private:
  static constexpr uint16_t kNone = 0xffff;
  Buffer<uint16_t> rank_of_expert_;
  Buffer<uint8_t> in_cover_;
};

}  // namespace airmoe::scheduler
