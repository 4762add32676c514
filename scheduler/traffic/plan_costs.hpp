#pragma once
// What tokens and copies cost on the wire, for the planner.

#include <cstdint>

#include "scheduler/placement/plan.hpp"
#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::scheduler {

/// Local. Bytes of strategy `cover`: of a token at the only rank of its cover, of what it costs
/// more at each rank of a wider one (scores, cut, sums as `shape.sums`), of a copy in an optimizer
/// step of `micro_batches`.
/// @param active  K
/// @param length  M
PlanCosts plan_costs(const TrafficShape& shape, int64_t active, int64_t length,
                     int64_t micro_batches);

}  // namespace airmoe::scheduler
