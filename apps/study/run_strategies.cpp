#include "apps/study/run_strategies.hpp"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>

#include "apps/study/clustered_layer.hpp"
#include "apps/study/planning.hpp"
#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/predict.hpp"

namespace airmoe::study {

namespace {

using scheduler::Exchange;
using scheduler::Placement;
using scheduler::RoutingTrace;
using scheduler::StepPrediction;

constexpr const char* kPhases[] = {
    "dispatch",          "select",           "combine", "usage",
    "backward_dispatch", "backward_combine", "copies",  "copy_gradients"};

struct Strategy {
  std::string name;
  Exchange exchange;
  double budget;  ///< of the planner; 0: experts in blocks of ids, not planned
};

std::vector<Strategy> strategies_of(const Options& o, int ranks) {
  std::vector<Strategy> all = {{"cover, blocks", Exchange::cover, 0},
                               {"cover, no copies", Exchange::cover, 1}};
  for (const double b : o.budgets.empty() ? std::vector<double>{2, 4} : o.budgets) {
    if (b > 1 && b <= ranks)
      all.push_back({fmt::format("cover, budget {:g}", b), Exchange::cover, b});
  }
  all.push_back({"selected", Exchange::selected, 1});
  all.push_back({"gather", Exchange::gather, 1});
  return all;
}

ClusteredShape shape_of(const Options& o) {
  ClusteredShape shape;
  scheduler::ModelConfig& m = shape.model;
  m.dim = o.dim.value_or(64);
  m.heads = m.kv_heads = 1;
  m.experts = o.synthetic.experts;
  m.active = o.synthetic.active;
  m.shortlist = o.synthetic.length;
  m.codewords = o.synthetic.codewords;
  m.expert_dim = o.expert_dim.value_or(1);
  m.expert_activation = scheduler::parse_expert_activation(o.activation.value_or("gelu"));
  m.jitter = static_cast<float>(o.jitter.value_or(0.01));
  m.balance_weight = static_cast<float>(o.balance_weight.value_or(0.01));
  m.codebook_decay = 1.0f;
  m.dead_threshold = 0.0f;
  m.validate();
  shape.tokens_per_rank = o.tokens_per_rank.front();
  shape.micro_batches = o.micro_batches;
  if (o.sum_precision == "f32") shape.sums = scheduler::SumPrecision::f32;
  shape.seed = o.seed;
  return shape;
}

Placement placement_of(const Strategy& strategy, const RoutingTrace& routing, int ranks,
                       const Options& o, const scheduler::TrafficShape& traffic) {
  if (strategy.budget == 0) {
    return scheduler::block_placement(routing.experts, routing.codewords(), ranks);
  }
  std::vector<double> tokens;
  for (const int64_t n : routing.histogram()) tokens.push_back(static_cast<double>(n));
  return plan_placement({routing, tokens, ranks, strategy.budget, o.micro_batches}, traffic);
}

class StrategyRuns {
 public:
  StrategyRuns(const Options& options, comm::Communicator& comm)
      : options_(options),
        comm_(comm),
        shape_(shape_of(options)),
        traffic_{.dim = shape_.model.dim,
                 .expert_dim = shape_.model.expert_dim,
                 .gated = shape_.model.expert_activation == experts::ExpertActivation::swiglu,
                 .jitter = shape_.model.jitter > 0,
                 .balance = shape_.model.balance_weight > 0,
                 .sums = shape_.sums} {}

  ExitCode run() {
    const scheduler::ModelConfig& m = shape_.model;
    print(
        fmt::format("# {} ranks, {} SYNTHETIC tokens per rank and micro-batch, {} "
                    "micro-batches; E {} K {} M {} G {} d {} m {}\n"
                    "# bytes to other ranks of one optimizer step, summed over ranks: measured, "
                    "predicted; times: median of {} steps\n",
                    comm_.size(), shape_.tokens_per_rank, shape_.micro_batches, m.experts, m.active,
                    m.shortlist, m.codewords, m.dim, m.expert_dim, options_.run_steps));
    if (!options_.csv.empty()) csv_ = "strategy,phase,measured_bytes,predicted_bytes\n";
    for (const Strategy& s : strategies_of(options_, comm_.size())) run(s);
    write_csv();
    if (differences_ > 0) {
      fail(ExitCode::failure,
           "{} counts of bytes differ from the prediction; the table shows the phases",
           differences_);
    }
    return ExitCode::ok;
  }

 private:
  void print(const std::string& text) const {
    if (comm_.rank() != 0) return;
    fmt::print("{}", text);
    std::fflush(stdout);
  }

  void run(const Strategy& strategy) {
    scheduler::ExchangeConfig exchange;
    exchange.exchange = strategy.exchange;
    exchange.copy_budget = comm_.size();  // the placement below keeps to its own
    exchange.move_homes = false;
    ClusteredLayer layer(comm_, shape_, exchange);
    RoutingTrace routing;
    {  // Lists and traffic to plan from: the routing is the same under every placement.
      layer.place(
          scheduler::block_placement(shape_.model.experts, shape_.model.codewords, comm_.size()),
          strategy.exchange);
      routing = layer.routing();
    }
    const Placement placement = placement_of(strategy, routing, comm_.size(), options_, traffic_);
    layer.place(placement, strategy.exchange);
    layer.step();  // moves experts to their owners
    std::vector<double> seconds;
    for (int64_t i = 0; i < options_.run_steps; ++i) seconds.push_back(layer.step());
    std::sort(seconds.begin(), seconds.end());
    report(strategy, predict(strategy, routing, placement), layer.stats(),
           seconds[seconds.size() / 2]);
  }

  StepPrediction predict(const Strategy& strategy, const RoutingTrace& routing,
                         const Placement& placement) const {
    const auto spread =
        scheduler::TokenSpread::even(routing.tokens(), comm_.size(), shape_.micro_batches);
    switch (strategy.exchange) {
      case Exchange::gather:
        return predict_gather(routing, spread, placement, traffic_);
      case Exchange::selected:
        return predict_selected(routing, spread, placement, traffic_);
      default:
        return predict_cover(routing, spread, placement, traffic_);
    }
  }

  // `stats` are those of the last step.
  void report(const Strategy& strategy, const StepPrediction& want,
              const comm::StatsCommunicator& stats, double seconds) {
    std::vector<int64_t> measured, wrong;
    for (const char* phase : kPhases) {
      measured.push_back(stats.stats(phase).bytes_sent);
      wrong.push_back(measured.back() != want.traffic.phase_bytes(phase, comm_.rank()) ? 1 : 0);
    }
    comm_.all_reduce(std::span<int64_t>(measured), comm::Reduction::sum);
    comm_.all_reduce(std::span<int64_t>(wrong), comm::Reduction::sum);
    std::string text = fmt::format("\n{}\n", strategy.name);
    int64_t total = 0, total_predicted = 0;
    const auto line = [&](const char* phase, int64_t got, int64_t predicted, const char* note) {
      text += fmt::format("  {:<18}{:>14}{:>14}{}\n", phase, got, predicted, note);
      if (!options_.csv.empty()) {
        csv_ += fmt::format("\"{}\",{},{},{}\n", strategy.name, phase, got, predicted);
      }
    };
    for (std::size_t i = 0; i < measured.size(); ++i) {
      int64_t predicted = 0;
      for (int r = 0; r < comm_.size(); ++r) predicted += want.traffic.phase_bytes(kPhases[i], r);
      line(kPhases[i], measured[i], predicted, wrong[i] > 0 ? "  DIFFERENT" : "");
      total += measured[i];
      total_predicted += predicted;
      differences_ += wrong[i];
    }
    line("total", total, total_predicted, "");
    const double predicted = scheduler::predicted_seconds(want, traffic_, options_.machine);
    const auto tokens = static_cast<double>(std::max<int64_t>(want.tokens, 1));
    text += fmt::format(
        "  candidate ranks {:.2f}, selected ranks {:.2f} per token; step {:.2f} ms, model {:.2f} "
        "ms\n",
        static_cast<double>(want.candidate_ranks) / tokens,
        static_cast<double>(want.selected_ranks) / tokens, 1e3 * seconds, 1e3 * predicted);
    print(text);
  }

  void write_csv() {
    int32_t failed = 0;
    if (comm_.rank() == 0 && !options_.csv.empty()) {
      std::ofstream file(options_.csv);
      file << csv_;
      file.close();
      failed = file ? 0 : 1;
    }
    comm_.broadcast(std::span<int32_t>(&failed, 1), 0);
    if (failed != 0) fail(ExitCode::io, "{}: cannot write this file", options_.csv);
  }

  const Options& options_;
  comm::Communicator& comm_;
  ClusteredShape shape_;
  scheduler::TrafficShape traffic_;
  int64_t differences_ = 0;
  std::string csv_;
};

}  // namespace

ExitCode run_strategies(const Options& options, comm::Communicator& comm) {
  return StrategyRuns(options, comm).run();
}

}  // namespace airmoe::study
