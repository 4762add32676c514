#pragma once
// Owners of experts when there are no copies: a codeword's cover is then the owners of its list.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"

namespace airmoe::scheduler::placement {

/// Owners such that the lists of codewords with many tokens lie on few ranks. Equal counts; work is
/// balanced.
std::vector<int32_t> homes_by_affinity(const PlanInput& input);

/// Swaps owners of single experts until work is balanced, at most `most_moved` experts.
void balance_homes(const PlanInput& input, std::vector<int32_t>& home, int64_t most_moved);

/// The placement with these owners and no copies.
Placement without_copies(const PlanInput& input, std::vector<int32_t> home);

}  // namespace airmoe::scheduler::placement
