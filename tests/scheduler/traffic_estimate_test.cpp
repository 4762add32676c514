// Estimates against counted routing whose selections are drawn as the estimates assume, and the
// model of time by hand.

#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/traffic/estimate.hpp"
#include "scheduler/traffic/predict.hpp"
#include "tests/scheduler/traffic_case.hpp"

namespace airmoe::scheduler {
namespace {

using traffic_case::random_plan;
using traffic_case::random_trace;

// Share of all subsets of size `active` of `length` things that miss, or hold only, the first
// `candidates`.
std::pair<double, double> enumerate(int length, int active, int candidates) {
  int all = 0, none = 0, only = 0;
  for (unsigned set = 0; set < 1u << length; ++set) {
    if (__builtin_popcount(set) != active) continue;
    const int here = __builtin_popcount(set & ((1u << candidates) - 1));
    ++all;
    none += here == 0;
    only += here == active;
  }
  return {static_cast<double>(none) / all, static_cast<double>(only) / all};
}

TEST(TrafficEstimate, ChancesOfDraws) {
  for (const int active : {1, 3, 5, 10}) {
    const DrawChances chances(10, active);
    for (int c = 0; c <= 10; ++c) {
      const auto [none, only] = enumerate(10, active, c);
      EXPECT_NEAR(chances.none(c), none, 1e-12) << active << " of 10, " << c << " here";
      EXPECT_NEAR(chances.all(c), only, 1e-12) << active << " of 10, " << c << " here";
    }
  }
}

struct Case {
  RoutingTrace trace;
  std::vector<double> tokens;
  EstimateInput input;

  Case(int micro_batches, uint32_t seed) : trace(random_trace({6000, 300, 8, 40, 6}, seed)) {
    for (const int64_t n : trace.histogram()) tokens.push_back(static_cast<double>(n));
    input = {.experts = trace.experts,
             .active = trace.active,
             .length = trace.length,
             .lists = trace.lists,
             .tokens = tokens,
             .micro_batches = micro_batches};
  }
};

void expect_near(const StrategyEstimate& got, const StepPrediction& want, const char* what) {
  for (int c = 0; c < kChannels; ++c) {
    const auto channel = static_cast<Channel>(c);
    const auto bytes = static_cast<double>(want.traffic.bytes(channel));
    const double tolerance = channel == Channel::lists ? 0.1 : 0.04;  // both are approximations
    EXPECT_NEAR(got.bytes[c], bytes, tolerance * bytes) << what << ' ' << name_of(channel);
  }
  int64_t copies = 0;
  for (const RankLoad& load : want.load) copies += load.copies;
  EXPECT_NEAR(got.copies, static_cast<double>(copies), 0.02 * static_cast<double>(copies)) << what;
  const auto tokens = static_cast<double>(want.tokens);
  EXPECT_NEAR(got.selected_ranks, static_cast<double>(want.selected_ranks) / tokens, 0.03) << what;
  EXPECT_NEAR(got.candidate_ranks, static_cast<double>(want.candidate_ranks) / tokens, 0.1) << what;
}

TEST(TrafficEstimate, IsTheMeanOfRandomSelections) {
  const MachineConstants machine;
  for (const int batches : {1, 3}) {
    const Case c(batches, 31 + static_cast<uint32_t>(batches));
    const TrafficShape shape{.dim = 12};
    for (const int ranks : {1, 2, 3, 8}) {
      const TokenSpread spread = TokenSpread::even(c.trace.tokens(), ranks, batches);
      for (const bool copies : {false, true}) {
        const Placement placement = random_plan(c.trace, ranks, copies, 5);
        const StepPrediction step = predict_cover(c.trace, spread, placement, shape);
        const StrategyEstimate estimate = estimate_cover(c.input, placement, shape, machine);
        expect_near(estimate, step, copies ? "cover with copies" : "cover");
        const double seconds = predicted_seconds(step, shape, machine);
        EXPECT_NEAR(estimate.seconds, seconds, 0.25 * seconds);
      }
      const Placement placement = random_plan(c.trace, ranks, false, 6);
      expect_near(estimate_gather(c.input, placement, shape, machine),
                  predict_gather(c.trace, spread, placement, shape), "gather");
      const StepPrediction selected = predict_selected(c.trace, spread, placement, shape);
      const StrategyEstimate estimate = estimate_selected(c.input, placement, shape, machine);
      for (int channel = 0; channel < kChannels; ++channel) {
        const auto bytes =
            static_cast<double>(selected.traffic.bytes(static_cast<Channel>(channel)));
        EXPECT_NEAR(estimate.bytes[channel], bytes, 0.04 * bytes)
            << "selected " << name_of(static_cast<Channel>(channel));
      }
    }
  }
}

TEST(TrafficEstimate, TakesTheShareOfUsedCopies) {
  Case c(1, 40);
  const Placement placement = random_plan(c.trace, 3, true, 7);
  const TrafficShape shape{.dim = 12};
  c.input.used_copies = 0.25;
  const StrategyEstimate e = estimate_cover(c.input, placement, shape, {});
  EXPECT_NEAR(e.bytes[static_cast<int>(Channel::copy_gradients)],
              0.25 * e.copies * static_cast<double>(shape.copy_gradient_bytes()), 1e-6);
}

TEST(CostModel, IsTheSumOfItsTerms) {
  const MachineConstants machine{.latency_s = 2,
                                 .bandwidth_bytes_per_s = 10,
                                 .memory_bandwidth_bytes_per_s = 100,
                                 .flops = 1000};
  const RankCost cost{.messages = 3, .sent = 50, .received = 70, .touched = 400, .flops = 5000};
  EXPECT_DOUBLE_EQ(cost.seconds(machine), 6 + 7 + 4 + 5);
  const TrafficShape shape{.dim = 10, .expert_dim = 3, .gated = true};
  EXPECT_DOUBLE_EQ(pair_flops(7, 0, shape), 7 * 20);
  EXPECT_DOUBLE_EQ(pair_flops(0, 1, shape), 40 + 3 * (2 * 10 * 3 * 3));
  StepPrediction step;
  step.traffic = StepTraffic(2);
  step.load.resize(2);
  step.traffic.message(Channel::dispatch, 0, 1, 40);
  step.load[1].scored = 10;
  // Rank 1 receives 40, touches 80 and computes 200.
  EXPECT_DOUBLE_EQ(predicted_seconds(step, shape, machine), std::max(2 + 4 + 0.8, 4 + 0.8 + 0.2));
  EXPECT_DOUBLE_EQ(memory_bytes({.tokens = 2, .owned = 1, .copies = 1}, TrafficShape{.dim = 10}),
                   2 * 12 * 30 + 8 * 30 + 40 + 640);
}

ExitCode code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

TEST(CostModel, ReadsConstants) {
  const std::string path = testing::TempDir() + "airmoe_constants.json";
  const auto write = [&](const char* text) { std::ofstream(path) << text; };
  write(R"({"machine": {"latency_s": 1e-6, "flops": 5e9}, "other": []})");
  const MachineConstants read = read_machine_constants(path);
  EXPECT_DOUBLE_EQ(read.latency_s, 1e-6);
  EXPECT_DOUBLE_EQ(read.flops, 5e9);
  EXPECT_DOUBLE_EQ(read.bandwidth_bytes_per_s, MachineConstants{}.bandwidth_bytes_per_s);
  write(R"({"bandwidth_bytes_per_s": 7})");
  EXPECT_DOUBLE_EQ(read_machine_constants(path).bandwidth_bytes_per_s, 7);
  for (const char* bad : {"", "[1]", "{}", R"({"flops": 0})", R"({"latency_s": "fast"})"}) {
    write(bad);
    EXPECT_EQ(code_of([&] { read_machine_constants(path); }), ExitCode::bad_data) << bad;
  }
  std::remove(path.c_str());
  EXPECT_EQ(code_of([&] { read_machine_constants(path); }), ExitCode::io);
  EXPECT_EQ(code_of([] { MachineConstants{.flops = -1}.validate(); }), ExitCode::usage);
}

}  // namespace
}  // namespace airmoe::scheduler
