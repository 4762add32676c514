#pragma once
// When and how a layer gets a new placement: rank 0 gathers the lists, plans, and says which
// exchange strategy comes next.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "scheduler/exchange_config.hpp"
#include "scheduler/model_config.hpp"
#include "scheduler/moe/shortlists.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/sum_precision.hpp"
#include "scheduler/traffic/estimate.hpp"

namespace airmoe::scheduler {

/// One placement as it was made. Equal on all ranks but for `moved`, which is this rank's.
struct PlacementRecord {
  uint32_t step = 0;
  Exchange exchange = Exchange::cover;
  double plan_seconds = 0;       ///< on rank 0, without gathering the lists
  double predicted_bytes = 0;    ///< sent in an optimizer step by all ranks for this layer
  double predicted_seconds = 0;  ///< of communication and compute of one step of this layer
  double cover = 0;              ///< ranks per token, weighted by tokens
  double rows = 0;               ///< most experts on a rank, owned and copies, over E / ranks
  double work_imbalance = 0;     ///< max / mean of tokens x candidates
  int64_t moved = 0;             ///< experts that this rank gave to another owner
};

class PlacementStep {
 public:
  PlacementStep(comm::Communicator& comm, const ModelConfig& model, const ExchangeConfig& exchange,
                SumPrecision sums);

  /// Local, the same on all ranks: whether a placement should be made at this optimizer step. At
  /// the first, at about every doubling of the step number, and every replan_every steps.
  bool due(uint32_t step) const;

  /// Collective. Makes a placement for the present lists and the traffic so far.
  /// @param tokens         mean tokens per codeword and micro-batch, over all ranks. Shape: [G]
  /// @param micro_batches  of an optimizer step
  /// @param used_copies    share of the copies that a step selects, as far as it is known; the same
  ///                       on all ranks
  /// @param homes          present owners. Shape: [E]
  /// @return new owners, if experts are to move
  std::optional<std::vector<int32_t>> plan(const Shortlists& lists, std::span<const float> tokens,
                                           uint32_t step, int64_t micro_batches, double used_copies,
                                           std::span<const int32_t> homes);
  void count_moved(int64_t experts) { record_.moved = experts; }

  /// Local, the same on all ranks: use this placement from the next rebuild of all lists on,
  /// without planning. `placement` must have been made for the lists that this rebuild gives; for
  /// studies and tests.
  void fix(Placement placement, Exchange exchange);

  /// The placement to route by; rank 0 only.
  const Placement& placement() const { return placement_; }
  Exchange exchange() const { return record_.exchange; }
  /// Most experts with a row on one rank.
  int64_t row_limit() const { return row_limit_; }
  const PlacementRecord& record() const { return record_; }

 private:
  // One way to do it, on rank 0.
  struct Option {
    Exchange exchange;
    Placement placement;
    StrategyEstimate estimate;
    double rows = 1;  // most experts on a rank, over E / ranks
  };
  PlanInput plan_input(double budget) const;
  Placement make(double budget, const Placement& before) const;
  void consider(std::vector<Option>& options, Exchange exchange, Placement placement) const;
  void choose(const Shortlists& lists, std::span<const float> tokens, int64_t micro_batches,
              std::span<const int32_t> homes);
  void announce();

  comm::Communicator& comm_;
  ModelConfig model_;
  ExchangeConfig config_;
  TrafficShape shape_;
  int64_t row_limit_;
  bool planned_ = false;
  bool fixed_ = false;
  uint32_t next_ = 0;
  Placement placement_;
  PlacementRecord record_;

  // Rank 0.
  Buffer<int32_t> lists_, previous_lists_;  // [G, M]
  std::vector<double> tokens_;              // [G] per optimizer step
  int64_t micro_batches_ = 1;
  double used_copies_ = 1;
  std::vector<Placement> before_;  // as planned last, by copy budget
};

}  // namespace airmoe::scheduler
