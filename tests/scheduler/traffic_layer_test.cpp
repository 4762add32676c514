// What the predictor says of the layer's own routing, against what StatsCommunicator counted while
// the layer ran: equal to the byte, on every rank and in every phase but the rebuild of lists.

#include "comm/stats_communicator.hpp"
#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/predict.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/scheduler/traffic_case.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using scheduler::Exchange;
using scheduler::ExchangeConfig;
using scheduler::Placement;
using scheduler::RoutingTrace;
using scheduler::StepPrediction;
using scheduler::SumPrecision;
using scheduler::TokenSpread;
using scheduler::TrafficShape;

constexpr const char* kPhases[] = {
    "dispatch",          "select",           "combine", "usage",
    "backward_dispatch", "backward_combine", "copies",  "copy_gradients"};

struct Setting {
  const char* name;
  Exchange exchange;
  bool scattered, copies;  ///< homes and parts at random, with copies
  int64_t chunks = 1;
};
const Setting kSettings[] = {
    {"cover in blocks", Exchange::cover, false, false},
    {"cover with scattered homes", Exchange::cover, true, false},
    {"cover with copies", Exchange::cover, true, true},
    {"cover with copies in chunks", Exchange::cover, true, true, 3},
    {"gather", Exchange::gather, true, false},
    {"selected", Exchange::selected, true, false},
    {"selected in blocks", Exchange::selected, false, false},
};

Placement placement_for(const ModelConfig& c, const Setting& setting, int ranks) {
  if (!setting.scattered) return scheduler::block_placement(c.experts, c.codewords, ranks);
  RoutingTrace sizes;
  sizes.experts = c.experts;
  sizes.length = c.shortlist;
  sizes.lists.resize(c.codewords * c.shortlist);
  return traffic_case::random_plan(sizes, ranks, setting.copies, 17);
}

void check(const Setting& setting, const Shape& shape, Split split, SumPrecision sums) {
  SCOPED_TRACE(setting.name);
  const int ranks = test::world().size(), rank = test::world().rank();
  Problem p = random_problem(shape, 61);
  const float scale = 0.5f / static_cast<float>(shape.tokens);
  comm::StatsCommunicator counted(test::world());
  ExchangeConfig exchange;
  exchange.exchange = setting.exchange;
  exchange.overlap_chunks = setting.chunks;
  exchange.move_homes = false;
  const Placement placement = placement_for(p.config, setting, ranks);
  LayerRun run(counted, p, split, experts::Path::dense, sums, exchange);
  run.layer.placement().fix(placement, setting.exchange);

  // Two micro-batches of one optimizer step. The codebook moves in between: codewords may change.
  RoutingTrace trace;
  trace.experts = shape.experts;
  trace.active = shape.active;
  trace.length = shape.shortlist;
  for (const uint32_t index : {0u, 1u}) {
    MicroBatch batch = run.batch(true, scale, 1, index);
    batch.count = 2;
    run.forward(p.arrays.hidden, batch);
    scheduler::RoutingRecord record;
    run.layer.capture(record);
    const auto add = [&](std::vector<int32_t>& to, const Buffer<int32_t>& from, int64_t count) {
      const std::vector<int32_t> all = gather(test::world(), from.data(), count);
      to.insert(to.end(), all.begin(), all.end());
    };
    add(trace.codeword, record.codeword, record.tokens);
    add(trace.expert, record.expert, record.tokens * shape.active);
    run.backward(p.arrays.d_out);
  }
  run.layer.finish_gradients();
  EXPECT_EQ(run.layer.counters().revived_codewords, 0) << "choose another seed for the test data";
  const std::span<const int32_t> merged = run.layer.shortlists().merged_lists();
  trace.lists = gather(test::world(), merged.data(), std::ssize(merged));
  trace.validate("captured routing");

  std::vector<int32_t> home(2 * shape.tokens);
  for (int r = 0; r < ranks; ++r) {
    const Part part = part_of(split, shape.tokens, r, ranks);
    for (const int64_t first : {int64_t{0}, shape.tokens}) {
      std::fill_n(home.begin() + first + part.first, part.count, r);
    }
  }
  const TokenSpread spread = TokenSpread::recorded(home, ranks, 2);
  const TrafficShape traffic{.dim = shape.dim,
                             .expert_dim = shape.expert_dim,
                             .gated = shape.activation == ExpertActivation::swiglu,
                             .jitter = p.config.jitter > 0,
                             .balance = p.config.balance_weight > 0,
                             .sums = sums};
  const auto predict = setting.exchange == Exchange::cover    ? scheduler::predict_cover
                       : setting.exchange == Exchange::gather ? scheduler::predict_gather
                                                              : scheduler::predict_selected;
  const StepPrediction want = predict(trace, spread, placement, traffic);
  int64_t sent = 0;
  for (const char* phase : kPhases) {
    EXPECT_EQ(counted.stats(phase).bytes_sent, want.traffic.phase_bytes(phase, rank)) << phase;
    if (setting.chunks == 1) {
      EXPECT_EQ(counted.stats(phase).messages_sent, want.traffic.phase_messages(phase, rank))
          << phase;
    }
    sent += counted.stats(phase).bytes_sent;
  }
  if (split == Split::even) {
    EXPECT_EQ(sent > 0, ranks > 1);
  }
}

TEST(TrafficLayer, PredictionIsWhatWasCounted) {
  for (const Setting& setting : kSettings) {
    for (const Split split : kSplits) {
      check(setting, {70, 12, 41, 5, 1, 6, 13}, split, SumPrecision::f64);
    }
  }
}
TEST(TrafficLayer, InSinglePrecisionWithGatedExperts) {
  for (const Setting& setting : kSettings) {
    check(setting, {70, 11, 90, 6, 2, 7, 20, ExpertActivation::swiglu}, Split::even,
          SumPrecision::f32);
  }
}
TEST(TrafficLayer, WithoutBalance) {
  for (const Setting& setting : kSettings) {
    check(setting, {64, 12, 41, 5, 1, 6, 13, ExpertActivation::gelu, 0.0f}, Split::even,
          SumPrecision::f64);
  }
}
TEST(TrafficLayer, OneSelectedExpert) {
  for (const Setting& setting : kSettings) {
    check(setting, {64, 12, 41, 1, 1, 6, 13}, Split::even, SumPrecision::f64);
  }
}

}  // namespace
}  // namespace airmoe::oracle
