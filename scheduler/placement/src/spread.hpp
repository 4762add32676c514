#pragma once
// Experts of many lists laid out on several ranks, each on one of them, so that the lists of
// codewords with many tokens lie on few ranks.

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

struct SpreadRank {
  int rank = 0;
  int64_t room = 0;  ///< experts that it may take
  double load = 0;   ///< work that it got
};

/// Gives every expert in the lists of `parts` one of `ranks`: rank_of_expert[e], which must be -1
/// on entry. Work per rank is balanced if experts are light enough for that; room is only exceeded
/// if there is not enough in all.
/// @param parts_of_group  by falling tokens
void spread_experts(const PlanInput& input, const Parts& parts,
                    std::span<const int32_t> parts_of_group, std::span<SpreadRank> ranks,
                    std::span<int32_t> rank_of_expert);

}  // namespace airmoe::scheduler::placement
