#include "apps/study/planning.hpp"

#include "scheduler/traffic/plan_costs.hpp"

namespace airmoe::study {

scheduler::Placement plan_placement(const PlanRequest& request,
                                    const scheduler::TrafficShape& shape) {
  const scheduler::RoutingTrace& trace = request.trace;
  return scheduler::plan(
      {.ranks = request.ranks,
       .experts = trace.experts,
       .codewords = trace.codewords(),
       .length = trace.length,
       .lists = trace.lists,
       .tokens = request.tokens,
       .copy_budget = request.budget,
       .move_homes = true,
       .costs = scheduler::plan_costs(shape, trace.active, trace.length, request.micro_batches)});
}

}  // namespace airmoe::study
