#include "scheduler/moe/placement_step.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace airmoe::scheduler {

namespace {

// One part per codeword, no copies.
Placement trivial(int ranks, int64_t codewords, std::span<const int32_t> homes) {
  Placement p;
  p.ranks = ranks;
  p.home.assign(homes.begin(), homes.end());
  p.part_begin.resize(codewords + 1);
  std::iota(p.part_begin.begin(), p.part_begin.end(), 0);
  p.primary.assign(codewords, 0);
  return p;
}

}  // namespace

PlacementStep::PlacementStep(comm::Communicator& comm, const ModelConfig& model,
                             const ExchangeConfig& exchange, SumPrecision sums)
    : comm_(comm), model_(model), config_(exchange), sums_(sums) {
  const double share = static_cast<double>(model.experts) / comm.size();
  row_limit_ = std::max<int64_t>((model.experts + comm.size() - 1) / comm.size(),
                                 std::llround(std::floor(config_.copy_budget * share)));
  record_.exchange = config_.exchange == Exchange::automatic ? Exchange::cover : config_.exchange;
}

bool PlacementStep::due(uint32_t step) const {
  if (fixed_) return !planned_;
  if (comm_.size() == 1) return false;
  const bool nothing_to_plan =
      config_.exchange == Exchange::gather || (config_.exchange != Exchange::automatic &&
                                               !config_.move_homes && config_.copy_budget <= 1.0);
  if (nothing_to_plan) return false;
  return !planned_ || step >= next_;
}

void PlacementStep::fix(Placement placement, Exchange exchange) {
  placement_ = std::move(placement);
  record_.exchange = exchange;
  fixed_ = true;
  planned_ = false;
}

std::optional<std::vector<int32_t>> PlacementStep::plan(const Shortlists& lists,
                                                        std::span<const float> tokens,
                                                        uint32_t step, int64_t micro_batches,
                                                        std::span<const int32_t> homes) {
  const comm::ScopedPhase phase(comm_, "placement");
  planned_ = true;
  if (fixed_) {
    if (std::equal(homes.begin(), homes.end(), placement_.home.begin())) return std::nullopt;
    return placement_.home;
  }
  next_ = step + static_cast<uint32_t>(
                     std::min<int64_t>(config_.replan_every, std::max<int64_t>(1, step)));
  placement_ = trivial(comm_.size(), lists.codewords(), homes);
  (void)tokens;
  (void)micro_batches;
  return std::nullopt;
}

}  // namespace airmoe::scheduler
