#pragma once
// What a strategy will send, before any token was routed: from lists, tokens per codeword and a
// placement. `--exchange auto` chooses by it.
//
// Assumed: a token's K selected experts are a random K of its M candidates, tokens of a codeword
// live on all ranks alike. Trained routing is more concentrated: fewer ranks have a selected expert
// and fewer copies return a gradient than expected here. Where the layer has seen routing it can
// say what share of copies was used.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/cost_model.hpp"
#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::scheduler {

struct EstimateInput {
  int64_t experts = 0;             ///< E
  int64_t active = 0;              ///< K
  int64_t length = 0;              ///< M
  std::span<const int32_t> lists;  ///< Shape: [G, M]
  std::span<const double> tokens;  ///< per optimizer step over all ranks. Shape: [G]
  int micro_batches = 1;           ///< of an optimizer step
  double used_copies = -1;         ///< share of copies that return a gradient; < 0: expected

  int64_t codewords() const { return std::ssize(tokens); }
};

struct StrategyEstimate {
  std::array<double, kChannels> bytes{};           ///< sent by all ranks in a step
  double copies = 0;                               ///< on all ranks
  double candidate_ranks = 0, selected_ranks = 0;  ///< per token
  std::vector<RankCost> rank;                      ///< Shape: [ranks]
  double seconds = 0;                              ///< of the slowest rank

  double total_bytes() const;
};

/// All are local and deterministic: O(parts M + E + parts * cover) time, memory O(parts M + E).
/// They throw Error(ExitCode::failure) when the input and the placement do not fit together.
StrategyEstimate estimate_cover(const EstimateInput& input, const Placement& placement,
                                const TrafficShape& shape, const MachineConstants& machine);
StrategyEstimate estimate_gather(const EstimateInput& input, const Placement& placement,
                                 const TrafficShape& shape, const MachineConstants& machine);
StrategyEstimate estimate_selected(const EstimateInput& input, const Placement& placement,
                                   const TrafficShape& shape, const MachineConstants& machine);

/// Chances that of `active` experts drawn from `length` none, or all, are among `candidates` of
/// them.
class DrawChances {
 public:
  DrawChances(int64_t length, int64_t active);
  double none(int64_t candidates) const;
  double all(int64_t candidates) const;

 private:
  double choose(int64_t n, int64_t k) const {
    return log_factorial_[n] - log_factorial_[k] - log_factorial_[n - k];
  }
  int64_t length_, active_;
  std::vector<double> log_factorial_;  // [length + 1]
};

}  // namespace airmoe::scheduler
