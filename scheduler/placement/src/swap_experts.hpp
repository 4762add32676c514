#pragma once
// Balancing work by swapping single experts between ranks, which keeps their counts.

#include <cstdint>
#include <span>
#include <vector>

namespace airmoe::scheduler::placement {

struct RankExperts {
  int rank = 0;
  std::vector<int32_t> experts;
};

/// Swaps experts of the rank with most work and of the rank with least, again and again, until
/// no rank has more than `limit`, no swap helps, or `most_moved` experts have moved.
/// @param work            of each expert.                      Shape: [E]
/// @param ranks           and their experts, in any order
/// @param rank_of_expert  (in and out) follows the swaps.      Shape: [E]
void swap_experts(std::span<const double> work, std::span<RankExperts> ranks, double limit,
                  int64_t most_moved, std::span<int32_t> rank_of_expert);

}  // namespace airmoe::scheduler::placement
