// The predictors against a count that follows every token, message by message.

#include <map>

#include <gtest/gtest.h>

#include "scheduler/traffic/predict.hpp"
#include "tests/scheduler/traffic_case.hpp"

namespace airmoe::scheduler {
namespace {

using traffic_case::random_plan;
using traffic_case::random_trace;
using traffic_case::Sizes;

struct Token {
  int64_t id;  ///< in the trace
  int home;
};

// Everything that goes from rank to rank, one addition per token and peer.
struct Wire {
  std::map<std::tuple<Channel, int, int, int>, int64_t> bytes;  ///< channel, batch, from, to
  void add(Channel c, int batch, int from, int to, int64_t n) {
    if (from != to && n > 0) bytes[{c, batch, from, to}] += n;
  }
};

std::vector<std::vector<Token>> batches_of(const TokenSpread& spread) {
  std::vector<std::vector<Token>> batches(static_cast<std::size_t>(spread.micro_batches()));
  for (int u = 0; u < spread.micro_batches(); ++u) {
    for (int h = 0; h < spread.ranks(); ++h) {
      spread.for_each(u, h, [&](int64_t t) { batches[u].push_back({t, h}); });
    }
  }
  return batches;
}

int64_t sum_width(const TrafficShape& s, std::size_t taken, int64_t active) {
  return static_cast<int64_t>(taken) == active || s.sums == SumPrecision::f32 ? 4 : 8;
}

/// (rank, expert)
using Copies = std::set<std::pair<int, int32_t>>;

/// Of the experts that ranks selected in a micro-batch.
void add_usage(Wire& wire, const Placement& placement, int u, const Copies& selected) {
  for (const auto& [r, e] : selected) {
    wire.add(Channel::usage_to_owner, u, r, placement.home[e], 8);
    wire.add(Channel::usage_to_copy, u, placement.home[e], r, 4);
  }
}

/// `held`: their unit centroids were fetched; `ever`: they were selected in some micro-batch.
void add_copies(Wire& wire, const Placement& placement, const TrafficShape& s, const Copies& held,
                const Copies& ever) {
  const int64_t values = ((s.gated ? 3 : 2) * s.expert_dim + 1) * s.dim;
  for (const auto& [r, e] : held) {
    wire.add(Channel::copy_requests, 0, r, placement.home[e], 4);
    wire.add(Channel::copy_values, 0, placement.home[e], r, 4 * s.dim);
  }
  for (const auto& [r, e] : ever) {  // the rest of those that are selected: a second exchange
    wire.add(Channel::copy_requests, 1, r, placement.home[e], 4);
    wire.add(Channel::copy_values, 1, placement.home[e], r, 4 * (values - s.dim));
    const int64_t w = s.sums == SumPrecision::f32 ? 4 : 8;
    wire.add(Channel::copy_gradients, 0, r, placement.home[e], 4 + values * w);
  }
}

Wire naive_cover(const RoutingTrace& trace, const TokenSpread& spread, const Placement& placement,
                 const TrafficShape& s) {
  Wire wire;
  Copies held, ever;
  const auto scorer = [&](int v, int64_t g, int64_t j) -> int {
    return placement.candidate_rank.empty() ? placement.home[trace.lists[g * trace.length + j]]
                                            : placement.candidate_rank[v * trace.length + j];
  };
  for (int64_t g = 0; g < trace.codewords(); ++g) {
    for (int v = placement.part_begin[g]; v < placement.part_begin[g + 1]; ++v) {
      for (int64_t j = 0; j < trace.length; ++j) {
        held.insert({scorer(v, g, j), trace.lists[g * trace.length + j]});
      }
    }
  }
  const auto batches = batches_of(spread);
  for (int u = 0; u < spread.micro_batches(); ++u) {
    std::set<std::tuple<int, int, int>> segments;
    Copies selected;
    for (int h = 0; h < spread.ranks(); ++h) {
      for (int64_t g = 0; g < trace.codewords(); ++g) {
        std::vector<int64_t> mine;
        for (const Token& token : batches[u]) {
          if (token.home == h && trace.codeword[token.id] == g) mine.push_back(token.id);
        }
        const int parts = placement.part_begin[g + 1] - placement.part_begin[g];
        const auto n = static_cast<int64_t>(mine.size());
        for (int64_t i = 0; i < n; ++i) {
          int64_t slice = 0, end = 0;  // slices of n / parts tokens, the first n % parts one more
          for (;; ++slice) {
            end += n / parts + (slice < n % parts ? 1 : 0);
            if (i < end) break;
          }
          const int v = placement.part_begin[g] + static_cast<int>((slice + h) % parts);
          std::map<int, int64_t> candidates;
          std::map<int, std::set<int32_t>> taken;
          for (int64_t j = 0; j < trace.length; ++j) ++candidates[scorer(v, g, j)];
          for (const int32_t e : trace.selected(mine[i])) {
            const auto list = trace.list(g);
            const auto j = std::find(list.begin(), list.end(), e) - list.begin();
            taken[scorer(v, g, j)].insert(e);
            selected.insert({scorer(v, g, j), e});
          }
          for (const auto& [r, count] : candidates) {
            segments.insert({h, r, v});
            wire.add(Channel::dispatch, u, h, r, 4 * s.dim + 4 * s.jitter);
            if (candidates.size() == 1) continue;
            wire.add(Channel::scores, u, r, h, 4 * std::min(trace.active, count));
            wire.add(Channel::cuts, u, h, r, 16);
          }
          for (const auto& [r, experts] : taken) {
            const int64_t w = sum_width(s, experts.size(), trace.active);
            wire.add(Channel::combine, u, r, h, w * (s.dim + s.balance));
            wire.add(Channel::backward_dispatch, u, h, r, 4 * (s.dim + 1));
            wire.add(Channel::backward_combine, u, r, h, w * s.dim);
          }
        }
      }
    }
    for (const auto& [h, r, v] : segments) wire.add(Channel::metadata, u, h, r, 8);
    add_usage(wire, placement, u, selected);
    ever.insert(selected.begin(), selected.end());
  }
  add_copies(wire, placement, s, held, ever);
  return wire;
}

Wire naive_gather(const RoutingTrace& trace, const TokenSpread& spread, const Placement& placement,
                  const TrafficShape& s) {
  // A part per home rank would do: tokens stay, their lists come.
  Wire wire;
  const auto batches = batches_of(spread);
  Copies held, ever;
  for (int u = 0; u < spread.micro_batches(); ++u) {
    Copies selected;
    for (const Token& token : batches[u]) {
      for (const int32_t e : trace.list(trace.codeword[token.id])) held.insert({token.home, e});
      for (const int32_t e : trace.selected(token.id)) selected.insert({token.home, e});
    }
    add_usage(wire, placement, u, selected);
    ever.insert(selected.begin(), selected.end());
  }
  add_copies(wire, placement, s, held, ever);
  return wire;
}

enum class Rows { selected, deduplicated, expert_copies };

Wire naive_selected(const RoutingTrace& trace, const TokenSpread& spread,
                    const Placement& placement, const TrafficShape& s, Rows rows) {
  Wire wire;
  const auto batches = batches_of(spread);
  std::set<std::pair<int, int32_t>> ever;
  for (int u = 0; u < spread.micro_batches(); ++u) {
    std::set<std::tuple<int, int, int32_t>> segments;
    for (const auto& [t, h] : batches[u]) {
      std::map<int, std::set<int32_t>> there;
      for (const int32_t e : trace.selected(t)) {
        there[placement.home[e]].insert(e);
        ever.insert({h, e});
      }
      for (const auto& [r, experts] : there) {
        const auto n = static_cast<int64_t>(experts.size());
        const int64_t row = 4 * s.dim;
        if (rows == Rows::selected) {
          const int64_t w = sum_width(s, experts.size(), trace.active);
          segments.insert({h, r, trace.codeword[t]});
          wire.add(Channel::dispatch, u, h, r, row + 4 + 8 * n);
          wire.add(Channel::combine, u, r, h, w * (s.dim + s.balance));
          wire.add(Channel::backward_dispatch, u, h, r, row + 4);
          wire.add(Channel::backward_combine, u, r, h,
                   (s.sums == SumPrecision::f32 ? 4 : 8) * s.dim + 4 * n);
          continue;
        }
        const bool one = rows == Rows::deduplicated;
        wire.add(Channel::dispatch, u, h, r, one ? row + 12 * n : n * row);
        for (const Channel c : {Channel::combine, Channel::backward_combine}) {
          wire.add(c, u, r, h, one ? row : n * row);
        }
        wire.add(Channel::backward_dispatch, u, h, r, one ? row : n * row);
      }
    }
    for (const auto& [h, r, g] : segments) wire.add(Channel::metadata, u, h, r, 12);
  }
  if (rows != Rows::selected) return wire;
  for (const int32_t e : std::set<int32_t>(trace.lists.begin(), trace.lists.end())) {
    for (int h = 0; h < spread.ranks(); ++h) {
      wire.add(Channel::copy_requests, 0, h, placement.home[e], 4);
      wire.add(Channel::copy_values, 0, placement.home[e], h, 4 * s.dim);
    }
  }
  for (const auto& [h, e] : ever) {
    const int64_t w = s.sums == SumPrecision::f32 ? 4 : 8;
    wire.add(Channel::copy_gradients, 0, h, placement.home[e], 4 + s.dim * w);
  }
  return wire;
}

/// `balance`: the combine phase has a second message for the column of the balance loss.
void expect_traffic(const StepPrediction& got, const Wire& want, int ranks, bool balance) {
  StepTraffic sum(ranks);
  for (const auto& [key, bytes] : want.bytes) {
    const auto& [channel, batch, from, to] = key;
    sum.message(channel, from, to, bytes);
  }
  for (int c = 0; c < kChannels; ++c) {
    const auto channel = static_cast<Channel>(c);
    if (channel == Channel::lists) continue;
    for (int r = 0; r < ranks; ++r) {
      const RankTraffic& g = got.traffic.at(channel, r);
      const RankTraffic& w = sum.at(channel, r);
      EXPECT_EQ(g.sent, w.sent) << name_of(channel) << " rank " << r;
      EXPECT_EQ(g.received, w.received) << name_of(channel) << " rank " << r;
      const bool twice = (balance && channel == Channel::combine) ||
                         channel == Channel::copy_gradients;  // ids, then rows
      const int times = twice ? 2 : 1;
      EXPECT_EQ(g.messages, times * w.messages) << name_of(channel) << " rank " << r;
    }
  }
}

std::vector<TrafficShape> shapes() {
  return {{.dim = 6},
          {.dim = 5, .expert_dim = 2, .gated = true, .jitter = false, .balance = false},
          {.dim = 4, .sums = SumPrecision::f32}};
}

std::vector<TokenSpread> spreads(const RoutingTrace& trace, int ranks) {
  std::vector<int32_t> home;
  for (int64_t t = 0; t < trace.tokens(); ++t) home.push_back(static_cast<int32_t>(t * 7 % ranks));
  std::vector<int32_t> last(home.size(), ranks - 1);  // no tokens elsewhere
  return {TokenSpread::even(trace.tokens(), ranks, 1), TokenSpread::even(trace.tokens(), ranks, 3),
          TokenSpread::recorded(home, ranks, 1), TokenSpread::recorded(last, ranks, 2),
          TokenSpread::tiled(trace.tokens(), ranks, 19, 7, 5, 2)};
}

TEST(TrafficPredict, CoverFollowsEveryToken) {
  uint32_t seed = 1;
  for (const int ranks : {1, 2, 3, 8, 70}) {
    for (const bool copies : {false, true}) {
      const RoutingTrace trace = random_trace({40, 90, 5, 9, 3}, ++seed);
      trace.validate("test");
      const Placement placement = random_plan(trace, ranks, copies, seed);
      for (const TokenSpread& spread : spreads(trace, ranks)) {
        for (const TrafficShape& shape : shapes()) {
          expect_traffic(predict_cover(trace, spread, placement, shape),
                         naive_cover(trace, spread, placement, shape), ranks, shape.balance);
        }
      }
    }
  }
}

TEST(TrafficPredict, GatherFollowsEveryToken) {
  for (const int ranks : {1, 2, 3, 8}) {
    const RoutingTrace trace = random_trace({}, 7);
    const Placement placement = random_plan(trace, ranks, true, 8);
    for (const TokenSpread& spread : spreads(trace, ranks)) {
      for (const TrafficShape& shape : shapes()) {
        expect_traffic(predict_gather(trace, spread, placement, shape),
                       naive_gather(trace, spread, placement, shape), ranks, shape.balance);
      }
    }
  }
}

TEST(TrafficPredict, SelectedAndBaselinesFollowEveryToken) {
  for (const int ranks : {1, 2, 3, 8}) {
    const RoutingTrace trace = random_trace({}, 11);
    const Placement placement = random_plan(trace, ranks, false, 12);
    for (const TokenSpread& spread : spreads(trace, ranks)) {
      for (const TrafficShape& shape : shapes()) {
        const auto naive = [&](Rows rows) {
          return naive_selected(trace, spread, placement, shape, rows);
        };
        expect_traffic(predict_selected(trace, spread, placement, shape), naive(Rows::selected),
                       ranks, shape.balance);
        expect_traffic(count_deduplicated(trace, spread, placement, shape),
                       naive(Rows::deduplicated), ranks, false);
        expect_traffic(count_expert_copies(trace, spread, placement, shape),
                       naive(Rows::expert_copies), ranks, false);
      }
    }
  }
}

// Three ranks with two experts each, blocks: {0, 1} {2, 3} {4, 5}; one token per rank, K = 2.
TEST(TrafficPredict, BaselinesOfACaseByHand) {
  RoutingTrace trace;
  trace.experts = 6;
  trace.active = 2;
  trace.length = 6;
  trace.lists = {0, 1, 2, 3, 4, 5};
  trace.codeword = {0, 0, 0};
  trace.expert = {0, 1, 2, 4, 1, 2};  // at home; one at home and one on rank 2; ranks 0 and 1
  const TokenSpread spread = TokenSpread::even(3, 3, 1);
  Placement blocks;
  blocks.ranks = 3;
  blocks.home = {0, 0, 1, 1, 2, 2};
  blocks.part_begin = {0, 1};
  blocks.primary = {0};
  const TrafficShape shape{.dim = 10};
  const StepPrediction dedup = count_deduplicated(trace, spread, blocks, shape);
  EXPECT_EQ(dedup.traffic.bytes(), 3 * (40 * 4 + 12));
  EXPECT_EQ(dedup.selected_ranks, 1 + 2 + 2);
  EXPECT_EQ(dedup.traffic.at(Channel::dispatch, 2).sent, 2 * (40 + 12));
  EXPECT_EQ(dedup.traffic.at(Channel::combine, 2).received, 80);
  EXPECT_EQ(dedup.load[0].selected, 3);
  EXPECT_EQ(count_expert_copies(trace, spread, blocks, shape).traffic.bytes(), 3 * 4 * 40);
  EXPECT_EQ(count_all_gather(trace, spread, blocks, shape).traffic.bytes(), 3 * 2 * 4 * 40);
  const StepPrediction everywhere = count_replicated(trace, spread, 3, shape);
  EXPECT_EQ(everywhere.traffic.bytes(), 3 * 2 * 2 * (6 * 30 * 4) / 3);
  EXPECT_EQ(everywhere.load[1].owned, 6);
}

TEST(TrafficPredict, LoadsAreSumsOverTokens) {
  const RoutingTrace trace = random_trace({}, 21);
  const TokenSpread spread = TokenSpread::tiled(trace.tokens(), 4, 30, 8, 3, 2);
  EXPECT_EQ(spread.tokens(), 4 * 30 * 2);
  const Placement placement = random_plan(trace, 4, true, 22);
  const auto sums = [](const StepPrediction& p) {
    RankLoad sum;
    for (const RankLoad& load : p.load) {
      sum.tokens += load.tokens;
      sum.scored += load.scored;
      sum.selected += load.selected;
      sum.owned += load.owned;
    }
    return sum;
  };
  const TrafficShape shape{.dim = 4};
  for (const StepPrediction& p : {predict_cover(trace, spread, placement, shape),
                                  predict_gather(trace, spread, placement, shape),
                                  predict_selected(trace, spread, placement, shape)}) {
    const RankLoad sum = sums(p);
    EXPECT_EQ(p.tokens, 240);
    EXPECT_EQ(sum.tokens, p.candidate_ranks);
    EXPECT_EQ(sum.scored, 240 * trace.length);
    EXPECT_EQ(sum.selected, 240 * trace.active);
    EXPECT_EQ(sum.owned, trace.experts);
  }
}

TEST(TrafficPredict, TilesUseEachSequenceEquallyOften) {
  const TokenSpread spread = TokenSpread::tiled(24, 4, 18, 6, 9, 1);
  std::vector<int> taken(24, 0);
  for (int h = 0; h < 4; ++h) {
    int64_t mine = 0;
    spread.for_each(0, h, [&](int64_t t) {
      ++taken[t];
      ++mine;
    });
    EXPECT_EQ(mine, 18);
  }
  EXPECT_EQ(taken, std::vector<int>(24, 3));
}

}  // namespace
}  // namespace airmoe::scheduler
