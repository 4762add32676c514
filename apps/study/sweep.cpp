#include "apps/study/sweep.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <fmt/format.h>

#include "apps/study/planning.hpp"
#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/estimate.hpp"

namespace airmoe::study {

using scheduler::Channel;
using scheduler::EstimateInput;
using scheduler::Placement;
using scheduler::RoutingTrace;
using scheduler::StepPrediction;
using scheduler::StrategyEstimate;
using scheduler::TokenSpread;
using scheduler::TrafficShape;

namespace {

constexpr double kBudgets[] = {1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};

double sum(const std::array<double, scheduler::kChannels>& bytes,
           std::initializer_list<Channel> channels) {
  double total = 0;
  for (const Channel c : channels) total += bytes[static_cast<int>(c)];
  return total;
}

double max_over_mean(std::span<const double> values) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (total <= 0) return 1;
  return *std::max_element(values.begin(), values.end()) * static_cast<double>(values.size()) /
         total;
}

class Sweep {
 public:
  Sweep(const Options& options, const RoutingTrace& trace, const TrafficShape& shape, int ranks,
        int64_t tokens_per_rank, const std::function<void(const std::string&)>& progress)
      : options_(options),
        trace_(trace),
        shape_(shape),
        ranks_(ranks),
        spread_(tokens_per_rank == 0
                    ? TokenSpread::even(trace.tokens(), ranks, options.micro_batches)
                    : TokenSpread::tiled(trace.tokens(), ranks, tokens_per_rank, options.sequence,
                                         options.seed, options.micro_batches)),
        progress_(progress) {
    // What a planner knows: the mean traffic of the trace, not the batch.
    const auto scale = static_cast<double>(spread_.tokens()) / static_cast<double>(trace.tokens());
    for (const int64_t n : trace.histogram()) tokens_.push_back(static_cast<double>(n) * scale);
  }

  std::vector<Row> run() {
    covers();
    homes_and_gather();
    choose();
    baselines();
    return std::move(rows_);
  }

 private:
  EstimateInput input() const {
    return {.experts = trace_.experts,
            .active = trace_.active,
            .length = trace_.length,
            .lists = trace_.lists,
            .tokens = tokens_,
            .micro_batches = options_.micro_batches};
  }

  Placement plan(double budget) {
    const auto start = std::chrono::steady_clock::now();
    Placement placement =
        plan_placement({trace_, tokens_, ranks_, budget, options_.micro_batches}, shape_);
    plan_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return placement;
  }

  Row& add(const StepPrediction& step, const std::string& strategy, const std::string& placement,
           double budget) {
    Row row = row_of(step, trace_, shape_, options_.machine);
    row.tokens_per_rank = step.tokens / ranks_ / options_.micro_batches;
    row.strategy = strategy;
    row.placement = placement;
    row.budget = budget;
    rows_.push_back(row);
    return rows_.back();
  }
  Row& add(const StepPrediction& step, const StrategyEstimate& estimate,
           const std::string& strategy, double budget) {
    Row& row = add(step, strategy, "planned", budget);
    row.estimated_seconds = estimate.seconds;
    row.estimated_bytes =
        step.tokens == 0 ? 0 : estimate.total_bytes() / static_cast<double>(step.tokens);
    row.plan_seconds = plan_seconds_;
    candidates_.push_back(rows_.size() - 1);
    return row;
  }

  double worth(const Row& row) const { return options_.by_bytes ? row.total_bytes() : row.seconds; }
  double expected_worth(const Row& row) const {
    return options_.by_bytes ? row.estimated_bytes : row.estimated_seconds;
  }

  void covers() {
    std::vector<double> budgets = {1};
    for (const double b : options_.budgets.empty()
                              ? std::vector<double>(std::begin(kBudgets), std::end(kBudgets))
                              : options_.budgets) {
      if (b > 1 && b <= ranks_) budgets.push_back(b);
    }
    std::size_t best = 0;
    for (const double budget : budgets) {
      if (ranks_ == 1 && budget > 1) continue;
      progress_(fmt::format("{} ranks: cover, budget {:g}", ranks_, budget));
      const Placement placement = plan(budget);
      if (budget == 1) homes_ = placement;
      const StepPrediction step = predict_cover(trace_, spread_, placement, shape_);
      add(step, estimate_cover(input(), placement, shape_, options_.machine), "cover", budget);
      if (worth(rows_.back()) < worth(rows_[best])) best = rows_.size() - 1;
      // Once the budget does not bind, plans repeat themselves.
      const std::size_t n = rows_.size();
      if (options_.budgets.empty() && n > 1 && rows_[n - 1].bytes == rows_[n - 2].bytes) break;
    }
    rows_[best].best = true;
  }

  void homes_and_gather() {
    plan_seconds_ = 0;
    progress_(fmt::format("{} ranks: selected", ranks_));
    add(predict_selected(trace_, spread_, homes_, shape_),
        estimate_selected(input(), homes_, shape_, options_.machine), "selected", 0);
    progress_(fmt::format("{} ranks: gather", ranks_));
    add(predict_gather(trace_, spread_, homes_, shape_),
        estimate_gather(input(), homes_, shape_, options_.machine), "gather", 0);
  }

  void choose() {
    std::size_t best = candidates_.front();
    for (const std::size_t i : candidates_) {
      if (expected_worth(rows_[i]) < expected_worth(rows_[best])) best = i;
    }
    Row row = rows_[best];
    row.placement = row.strategy;
    row.strategy = "auto";
    row.best = false;
    rows_.push_back(row);
  }

  void baselines() {
    progress_(fmt::format("{} ranks: baselines", ranks_));
    const Placement random =
        scheduler::random_placement(trace_.experts, trace_.codewords(), ranks_, options_.seed);
    const Placement block = scheduler::block_placement(trace_.experts, trace_.codewords(), ranks_);
    add(count_deduplicated(trace_, spread_, random, shape_), "deduplicated", "random", 0);
    add(count_deduplicated(trace_, spread_, block, shape_), "deduplicated", "block", 0);
    add(count_expert_copies(trace_, spread_, random, shape_), "per-expert", "random", 0);
    add(count_all_gather(trace_, spread_, block, shape_), "all-gather", "block", 0);
    add(count_replicated(trace_, spread_, ranks_, shape_), "replicated", "none", ranks_);
  }

  const Options& options_;
  const RoutingTrace& trace_;
  const TrafficShape& shape_;
  int ranks_;
  TokenSpread spread_;
  std::vector<double> tokens_;
  const std::function<void(const std::string&)>& progress_;
  Placement homes_;
  double plan_seconds_ = 0;
  std::vector<Row> rows_;
  std::vector<std::size_t> candidates_;  // rows that `auto` may choose
};

}  // namespace

double Row::forward_bytes() const {
  return sum(bytes, {Channel::metadata, Channel::dispatch, Channel::scores, Channel::cuts,
                     Channel::combine});
}

double Row::backward_bytes() const {
  return sum(bytes, {Channel::backward_dispatch, Channel::backward_combine});
}

double Row::copy_bytes_per_token() const {
  return sum(bytes, {Channel::usage_to_owner, Channel::usage_to_copy, Channel::copy_requests,
                     Channel::copy_values, Channel::copy_gradients});
}

double Row::total_bytes() const {
  return std::accumulate(bytes.begin(), bytes.end(), 0.0);
}

Row row_of(const StepPrediction& step, const RoutingTrace& trace, const TrafficShape& shape,
           const scheduler::MachineConstants& machine) {
  const int ranks = step.traffic.ranks();
  Row row;
  row.ranks = ranks;
  const auto tokens = static_cast<double>(std::max<int64_t>(step.tokens, 1));
  row.candidate_ranks = static_cast<double>(step.candidate_ranks) / tokens;
  row.selected_ranks = static_cast<double>(step.selected_ranks) / tokens;
  for (int c = 0; c < scheduler::kChannels; ++c) {
    row.bytes[c] = static_cast<double>(step.traffic.bytes(static_cast<Channel>(c))) / tokens;
  }
  row.copy_bytes = row.copy_bytes_per_token() * tokens;
  std::vector<double> load_tokens, work;
  double messages = 0;
  int64_t rows = 0;
  for (int r = 0; r < ranks; ++r) {
    const scheduler::RankLoad& load = step.load[r];
    const auto sent = static_cast<double>(step.traffic.of_rank(r).messages);
    messages += sent;
    row.messages_max = std::max(row.messages_max, sent);
    row.memory_max = std::max(row.memory_max, scheduler::memory_bytes(load, shape));
    rows = std::max(rows, load.owned + load.copies);
    load_tokens.push_back(static_cast<double>(load.tokens));
    work.push_back(scheduler::pair_flops(static_cast<double>(load.scored),
                                         static_cast<double>(load.selected), shape));
  }
  row.messages_mean = messages / ranks;
  row.rows_max =
      static_cast<double>(rows) * static_cast<double>(ranks) / static_cast<double>(trace.experts);
  row.tokens_imbalance = max_over_mean(load_tokens);
  row.work_imbalance = max_over_mean(work);
  row.seconds = scheduler::predicted_seconds(step, shape, machine);
  return row;
}

std::vector<Row> sweep(const Options& options, const RoutingTrace& trace, const TrafficShape& shape,
                       int ranks, int64_t tokens_per_rank,
                       const std::function<void(const std::string&)>& progress) {
  return Sweep(options, trace, shape, ranks, tokens_per_rank, progress).run();
}

}  // namespace airmoe::study
