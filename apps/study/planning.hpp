#pragma once
// The planner, asked with what a study knows.

#include <span>

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/routing_trace.hpp"
#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::study {

struct PlanRequest {
  const scheduler::RoutingTrace& trace;  ///< lists; its tokens are not looked at
  std::span<const double> tokens;        ///< per optimizer step over all ranks. Shape: [G]
  int ranks = 1;
  double budget = 1;  ///< rows per rank as a multiple of E / ranks
  int micro_batches = 1;
};

/// Local, deterministic.
scheduler::Placement plan_placement(const PlanRequest& request,
                                    const scheduler::TrafficShape& shape);

}  // namespace airmoe::study
