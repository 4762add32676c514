#include "scheduler/moe/placement_step.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "comm/base/error.hpp"
#include "scheduler/placement/report.hpp"
#include "scheduler/traffic/plan_costs.hpp"

namespace airmoe::scheduler {

namespace {

// Another strategy has to be this much faster than the present one to replace it.
constexpr double kWorthChanging = 0.95;

TrafficShape traffic_shape(const ModelConfig& model, SumPrecision sums) {
  TrafficShape shape;
  shape.dim = model.dim;
  shape.expert_dim = model.expert_dim;
  shape.gated = model.expert_activation == ExpertActivation::swiglu;
  shape.jitter = model.jitter > 0.0f;
  shape.balance = model.balance_weight > 0.0f;
  shape.sums = sums;
  return shape;
}

// One part per codeword, no copies, these owners.
Placement owners_only(int ranks, int64_t codewords, std::span<const int32_t> homes) {
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
    : comm_(comm),
      model_(model),
      config_(exchange),
      shape_(traffic_shape(model, sums)),
      row_limit_(scheduler::row_limit(model.experts, comm.size(), exchange.copy_budget)) {
  record_.exchange = config_.exchange == Exchange::automatic ? Exchange::cover : config_.exchange;
  // A capped list spans the owners at the time it was built.
  if (config_.rank_cap > 0) config_.move_homes = false;
}

bool PlacementStep::due(uint32_t step) const {
  if (fixed_) return !planned_;
  if (comm_.size() == 1 || config_.exchange == Exchange::gather) return false;
  const bool may_copy = config_.exchange == Exchange::cover && config_.copy_budget > 1.0;
  if (config_.exchange != Exchange::automatic && !config_.move_homes && !may_copy) return false;
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
                                                        double used_copies,
                                                        std::span<const int32_t> homes) {
  const comm::ScopedPhase phase(comm_, "placement");
  std::vector<int32_t> new_homes;
  used_copies_ = used_copies;
  if (!fixed_) {
    next_ = step + static_cast<uint32_t>(
                       std::min<int64_t>(config_.replan_every, std::max<int64_t>(1, step)));
    record_.step = step;
    record_.moved = 0;
    const bool root = comm_.rank() == 0;
    if (root) {
      std::swap(lists_, previous_lists_);
      lists_.ensure(lists.codewords() * lists.length());
    }
    lists.gather_to(0, lists_.span());
    if (root) choose(lists, tokens, micro_batches, homes);
    announce();
    new_homes.resize(homes.size());
    if (root) new_homes = placement_.home;
    comm_.broadcast(std::span<int32_t>(new_homes), 0);
  } else {
    new_homes = placement_.home;
  }
  planned_ = true;
  if (std::equal(homes.begin(), homes.end(), new_homes.begin())) return std::nullopt;
  return new_homes;
}

// Rank 0 tells the others what came out.
void PlacementStep::announce() {
  double numbers[] = {static_cast<double>(record_.exchange),
                      record_.plan_seconds,
                      record_.predicted_bytes,
                      record_.predicted_seconds,
                      record_.cover,
                      record_.rows,
                      record_.work_imbalance};
  comm_.broadcast(std::span<double>(numbers), 0);
  record_.exchange = static_cast<Exchange>(static_cast<int>(numbers[0]));
  record_.plan_seconds = numbers[1];
  record_.predicted_bytes = numbers[2];
  record_.predicted_seconds = numbers[3];
  record_.cover = numbers[4];
  record_.rows = numbers[5];
  record_.work_imbalance = numbers[6];
}

PlanInput PlacementStep::plan_input(double budget) const {
  PlanInput input;
  input.ranks = comm_.size();
  input.experts = model_.experts;
  input.codewords = model_.codewords;
  input.length = model_.shortlist;
  input.lists = lists_.span();
  input.tokens = tokens_;
  input.copy_budget = budget;
  input.move_homes = config_.move_homes;
  input.costs = plan_costs(shape_, model_.active, model_.shortlist, micro_batches_);
  input.costs.used_fraction = used_copies_;
  return input;
}

Placement PlacementStep::make(double budget, const Placement& before) const {
  const PlanInput input = plan_input(budget);
  if (before.home.empty()) return scheduler::plan(input);
  return replan(input, before, previous_lists_.span());
}

void PlacementStep::consider(std::vector<Option>& options, Exchange exchange,
                             Placement placement) const {
  EstimateInput input;
  input.experts = model_.experts;
  input.active = model_.active;
  input.length = model_.shortlist;
  input.lists = lists_.span();
  input.tokens = tokens_;
  input.micro_batches = static_cast<int>(micro_batches_);
  Option option;
  option.exchange = exchange;
  if (exchange == Exchange::cover) {
    option.estimate = estimate_cover(input, placement, shape_, config_.machine);
  } else if (exchange == Exchange::selected) {
    option.estimate = estimate_selected(input, placement, shape_, config_.machine);
    // Every rank has the centroids of all experts, a part of an expert's values.
    option.rows = 1.0 + static_cast<double>((comm_.size() - 1) * shape_.dim) /
                            static_cast<double>(shape_.values());
  } else {
    option.estimate = estimate_gather(input, placement, shape_, config_.machine);
    const double share = static_cast<double>(model_.experts) / comm_.size();
    option.rows = 1.0 + option.estimate.copies / comm_.size() / share;
  }
  option.placement = std::move(placement);
  options.push_back(std::move(option));
}

void PlacementStep::choose(const Shortlists& lists, std::span<const float> tokens,
                           int64_t micro_batches, std::span<const int32_t> homes) {
  const auto start = std::chrono::steady_clock::now();
  micro_batches_ = micro_batches;
  tokens_.assign(tokens.begin(), tokens.end());
  for (double& n : tokens_) n *= static_cast<double>(micro_batches);

  const bool any = config_.exchange == Exchange::automatic;
  const bool cover = any || config_.exchange == Exchange::cover;
  std::vector<Option> options;
  // The budget is a bound: fewer copies may be cheaper.
  std::vector<double> budgets = {1.0};
  if (cover && config_.copy_budget > 1.0) {
    budgets.push_back(1.0 + (config_.copy_budget - 1.0) / 3.0);
    budgets.push_back(config_.copy_budget);
  }
  before_.resize(budgets.size());
  for (std::size_t i = 0; i < budgets.size(); ++i) {
    if (i == 0 && !config_.move_homes) {
      before_[i] = owners_only(comm_.size(), lists.codewords(), homes);
    } else {
      before_[i] = make(budgets[i], before_[i]);
    }
    if (cover) consider(options, Exchange::cover, before_[i]);
  }
  if (any || config_.exchange == Exchange::selected) {
    consider(options, Exchange::selected,
             owners_only(comm_.size(), lists.codewords(), before_[0].home));
    if (any && options.back().rows > config_.copy_budget) options.pop_back();
  }
  if (any) {
    consider(options, Exchange::gather, owners_only(comm_.size(), lists.codewords(), homes));
    if (options.back().rows > config_.copy_budget) options.pop_back();
  }
  AIRMOE_ASSERT(!options.empty());
  const auto seconds = [&](const Option& o) {
    return o.estimate.seconds * (planned_ && o.exchange == record_.exchange ? kWorthChanging : 1.0);
  };
  Option& best =
      *std::min_element(options.begin(), options.end(),
                        [&](const Option& a, const Option& b) { return seconds(a) < seconds(b); });
  record_.exchange = best.exchange;
  record_.predicted_bytes = best.estimate.total_bytes();
  record_.predicted_seconds = best.estimate.seconds;
  record_.cover = best.estimate.candidate_ranks;
  record_.rows = best.rows;
  record_.work_imbalance = 1;
  placement_ = std::move(best.placement);
  if (best.exchange == Exchange::cover) {
    const PlacementReport r =
        report(plan_input(placement_.copies ? config_.copy_budget : 1.0), placement_);
    record_.cover = r.mean_cover;
    record_.rows = r.rows_max;
    record_.work_imbalance = r.work_imbalance;
  }
  record_.plan_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace airmoe::scheduler
