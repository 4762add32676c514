#pragma once
// Owners of experts.

#include <cstdint>
#include <vector>

#include "scheduler/placement/src/holders.hpp"

namespace airmoe::scheduler::placement {

/// Every rank owns its block of expert ids.
std::vector<int32_t> block_homes(int64_t experts, int ranks);

/// Owners such that few copies are left: an expert is owned by a rank that uses it where equal
/// counts allow it, experts that nothing uses fill up.
std::vector<int32_t> homes_by_use(const Holders& holders, int64_t experts, int ranks);

}  // namespace airmoe::scheduler::placement
