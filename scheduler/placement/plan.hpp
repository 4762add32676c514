#pragma once
// The planner: who owns which expert, which ranks take which codeword's tokens, and which copies
// that needs, so that an optimizer step moves few bytes within a memory budget and with balanced
// work.
//
// A token costs bytes at every rank of its codeword's cover, more if that cover has several ranks;
// a copy costs bytes once per optimizer step. The planner therefore puts codewords with similar
// shortlists on the same rank, and lets a codeword have a wider cover where that saves more copies
// than it costs tokens. Codewords that are heavier than a rank's share are split into parts.
//
// All functions here are local and deterministic: the same input gives the same placement.

#include <cstdint>
#include <span>

#include "scheduler/placement/placement.hpp"

namespace airmoe::scheduler {

/// Bytes that one token or one copy costs in an optimizer step, both directions, forward and
/// backward.
struct PlanCosts {
  /// A token at the only rank of its cover.
  double per_token_rank = 0;
  /// What a token costs more at each rank of a cover of several ranks.
  double shared_token_rank = 0;
  /// A copy: its parameters to the copy's rank, and its gradients back.
  double per_copy_fetch = 0;
  double per_copy_return = 0;
  /// Share of the copies that are selected at least once in a step, and so return gradients.
  double used_fraction = 1;

  double per_copy() const { return per_copy_fetch + used_fraction * per_copy_return; }
  /// A token whose cover has `cover` ranks, wherever the token lives.
  double per_token(int64_t cover) const {
    return static_cast<double>(cover) * (per_token_rank + (cover > 1 ? shared_token_rank : 0));
  }
};

struct PlanInput {
  int ranks = 1;          ///< R, at most 65,535
  int64_t experts = 0;    ///< E
  int64_t codewords = 0;  ///< G
  int64_t length = 0;     ///< M
  /// Shortlists, in list order. Shape: [G, M]
  std::span<const int32_t> lists;
  /// Tokens of each codeword per optimizer step, over all ranks; may be fractions. Shape: [G]
  std::span<const double> tokens;
  /// Most experts with a row on a rank, as a multiple of E / R; 1: no copies. See row_limit().
  double copy_budget = 1;
  /// Experts may get any owner; otherwise every rank owns its block of expert ids.
  bool move_homes = true;
  PlanCosts costs;
};

/// Most rows of a rank under a budget: budget * E / R rounded down, at least the experts that a
/// rank owns.
int64_t row_limit(int64_t experts, int ranks, double copy_budget);

/// Plans from nothing. No rank has more than row_limit() rows; a twentieth of the copies that the
/// budget allows is left for entries of lists to come. Work (tokens times candidates) per
/// rank is at most 1.10 times the mean where parts are small enough for that. Without copies
/// (budget 1, or one rank) homes are chosen by codeword affinity.
/// Throws Error(ExitCode::config) for a budget below 1 or not finite and for more than 65,535
/// ranks.
Placement plan(const PlanInput& input);

/// Limits of an incremental plan.
struct ReplanLimits {
  double moved_homes = 0.05;  ///< most experts that get another owner, as a share of E
};

/// Adapts a placement to new lists and tokens: what still fits stays. Parts of a codeword stay as
/// many unless its tokens doubled or halved. Time: a fraction of plan()'s.
/// @param previous        placement of the same R, E, G and M
/// @param previous_lists  the lists that `previous` was made for; empty: input.lists. Shape: [G, M]
Placement replan(const PlanInput& input, const Placement& previous,
                 std::span<const int32_t> previous_lists, const ReplanLimits& limits = {});

}  // namespace airmoe::scheduler
