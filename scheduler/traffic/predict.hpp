#pragma once
// Exact payload bytes and messages of one optimizer step of one MoE layer,
// counted from its routing without running it. What is said here of `cover`,
// `gather` and `selected` is what StatsCommunicator counts when MoeLayer runs,
// to the byte, but for Channel::lists.
//
// Messages are those of unpieced exchanges: --overlap-chunks C cuts each token
// message into up to C. All functions are local and deterministic. Homes of
// tokens are `spread`, homes of experts and parts of codewords `placement`.
// They throw Error(ExitCode::failure) when trace, spread and placement do not
// fit together.

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/routing_trace.hpp"
#include "scheduler/traffic/step_traffic.hpp"
#include "scheduler/traffic/token_spread.hpp"

namespace airmoe::scheduler {

/// Strategy `cover`: tokens go to the covers of their parts; copies are those
/// of the placement. O(T (K + cover) + tokens) time; memory of the cover table,
/// T * cover counts and, with copies, ranks * E / 4 bytes.
StepPrediction predict_cover(const RoutingTrace& trace, const TokenSpread& spread,
                             const Placement& placement, const TrafficShape& shape);

/// Strategy `gather`: every rank holds copies of the union of the lists of its
/// tokens' codewords. Uses the placement's homes only. O(tokens + runs * (E /
/// 64 + distinct tokens (M + K))).
StepPrediction predict_gather(const RoutingTrace& trace, const TokenSpread& spread,
                              const Placement& placement, const TrafficShape& shape);

/// Strategy `selected`: home ranks score, tokens go to the owners of selected
/// experts. Uses the placement's homes only. O(T (K + ranks) + tokens * ranks /
/// 64); T * ranks counts of memory.
StepPrediction predict_selected(const RoutingTrace& trace, const TokenSpread& spread,
                                const Placement& placement, const TrafficShape& shape);

// What other libraries would send, for comparison. Rows of d floats there and
// back, forward and backward; only what is named is counted.

/// A row per selected expert on another rank (GShard, Tutel).
StepPrediction count_expert_copies(const RoutingTrace& trace, const TokenSpread& spread,
                                   const Placement& placement, const TrafficShape& shape);
/// A row per rank with selected experts, and 12 bytes of metadata per selected
/// expert there with the forward row (rank-deduplicated dispatch).
StepPrediction count_deduplicated(const RoutingTrace& trace, const TokenSpread& spread,
                                  const Placement& placement, const TrafficShape& shape);
/// Every token state to every rank (all-gather), every rank's sum back
/// (reduce-scatter), and the same in the backward.
StepPrediction count_all_gather(const RoutingTrace& trace, const TokenSpread& spread,
                                const Placement& placement, const TrafficShape& shape);
/// Every rank holds all experts; gradients are all-reduced as floats in a ring:
/// 2 (R - 1) / R of them leave each rank. No token moves.
StepPrediction count_replicated(const RoutingTrace& trace, const TokenSpread& spread, int ranks,
                                const TrafficShape& shape);

}  // namespace airmoe::scheduler
