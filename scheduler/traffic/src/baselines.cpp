// What other libraries would send.

#include "scheduler/traffic/src/selected_rows.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kMetadataBytes = 12;  // per selected expert: token, expert, gate

template <class Forward, class Row>
StepPrediction count_selected(const RoutingTrace& trace, const TokenSpread& spread,
                              const Placement& placement, Forward&& forward, Row&& row) {
  const OwnerCounts owners(trace, placement);
  StepPrediction result = selected_load(trace, spread, placement, owners);
  StepTraffic& traffic = result.traffic;
  count_rows(trace, spread, owners, Channel::dispatch, true, forward, traffic);
  count_rows(trace, spread, owners, Channel::combine, false, row, traffic);
  count_rows(trace, spread, owners, Channel::backward_dispatch, true, row, traffic);
  count_rows(trace, spread, owners, Channel::backward_combine, false, row, traffic);
  return result;
}

}  // namespace

StepPrediction count_expert_copies(const RoutingTrace& trace, const TokenSpread& spread,
                                   const Placement& placement, const TrafficShape& shape) {
  const auto rows = [&](int64_t n) { return n * 4 * shape.dim; };
  return count_selected(trace, spread, placement, rows, rows);
}

StepPrediction count_deduplicated(const RoutingTrace& trace, const TokenSpread& spread,
                                  const Placement& placement, const TrafficShape& shape) {
  return count_selected(
      trace, spread, placement, [&](int64_t n) { return 4 * shape.dim + kMetadataBytes * n; },
      [&](int64_t) { return 4 * shape.dim; });
}

StepPrediction count_all_gather(const RoutingTrace& trace, const TokenSpread& spread,
                                const Placement& placement, const TrafficShape& shape) {
  const int ranks = placement.ranks;
  const OwnerCounts owners(trace, placement);
  StepPrediction result = selected_load(trace, spread, placement, owners);
  result.candidate_ranks = result.tokens * ranks;
  for (int u = 0; u < spread.micro_batches(); ++u) {
    for (int h = 0; h < ranks; ++h) {
      int64_t tokens = 0;
      for (const TokenRun& run : spread.runs(u, h)) tokens += run.count;
      if (tokens == 0) continue;
      for (int r = 0; r < ranks; ++r) {
        if (r == h) continue;
        const int64_t bytes = tokens * 4 * shape.dim;
        result.traffic.message(Channel::dispatch, h, r, bytes);
        result.traffic.message(Channel::combine, r, h, bytes);
        result.traffic.message(Channel::backward_dispatch, h, r, bytes);
        result.traffic.message(Channel::backward_combine, r, h, bytes);
      }
    }
  }
  for (RankLoad& load : result.load) load.tokens = result.tokens;
  return result;
}

StepPrediction count_replicated(const RoutingTrace& trace, const TokenSpread& spread, int ranks,
                                const TrafficShape& shape) {
  StepPrediction result;
  result.traffic = StepTraffic(ranks);
  result.load.resize(static_cast<std::size_t>(ranks));
  const int64_t bytes = 4 * trace.experts * shape.values();
  for (int h = 0; h < ranks; ++h) {
    RankLoad& load = result.load[h];
    for (int u = 0; u < spread.micro_batches(); ++u) {
      for (const TokenRun& run : spread.runs(u, h)) load.tokens += run.count;
    }
    load.scored = load.tokens * trace.length;
    load.selected = load.tokens * trace.active;
    load.owned = trace.experts;
    result.tokens += load.tokens;
    RankTraffic& ring = result.traffic.at(Channel::copy_gradients, h);
    ring.sent = ring.received = 2 * (ranks - 1) * bytes / ranks;
    ring.messages = 2 * (ranks - 1);
  }
  result.candidate_ranks = result.tokens;
  result.selected_ranks = result.tokens;
  return result;
}

}  // namespace airmoe::scheduler
