#pragma once
// Few experts that change owners, because the owner does not use them and another rank does.

#include <cstdint>
#include <vector>

#include "scheduler/placement/src/holders.hpp"

namespace airmoe::scheduler::placement {

/// Owners after swaps that each save one or two copies and cost none; counts per rank stay.
/// @param most_moved  experts that may get another owner
std::vector<int32_t> swap_homes(const Holders& holders, const std::vector<int32_t>& home, int ranks,
                                int64_t most_moved);

}  // namespace airmoe::scheduler::placement
