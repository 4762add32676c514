#include <algorithm>

#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/src/copy_traffic.hpp"
#include "scheduler/traffic/src/home_sets.hpp"
#include "scheduler/traffic/src/selected_rows.hpp"

namespace airmoe::scheduler {

StepPrediction selected_load(const RoutingTrace& trace, const TokenSpread& spread,
                             const Placement& placement, const OwnerCounts& owners) {
  const int ranks = placement.ranks;
  AIRMOE_CHECK(spread.ranks() == ranks && trace.active <= 65535,
               "a spread over {} ranks, a placement on {}, K = {}", spread.ranks(), ranks,
               trace.active);
  StepPrediction result;
  result.traffic = StepTraffic(ranks);
  result.load.resize(static_cast<std::size_t>(ranks));
  const std::vector<int64_t> owned = owned_by_rank(placement);
  std::vector<int64_t> total(static_cast<std::size_t>(trace.tokens()), 0);
  for (int h = 0; h < ranks; ++h) {
    int64_t tokens = 0;
    for (int u = 0; u < spread.micro_batches(); ++u) {
      spread.for_each(u, h, [&](int64_t t) {
        ++total[t];
        ++tokens;
      });
    }
    result.tokens += tokens;
    result.load[h].scored = tokens * trace.length;
    result.load[h].owned = owned[h];
  }
  for (int64_t t = 0; t < trace.tokens(); ++t) {
    if (total[t] == 0) continue;
    for_each_in(owners.ranks_of(t), [&](int64_t r) {
      RankLoad& load = result.load[r];
      load.tokens += total[t];
      load.selected += total[t] * owners.at(t, static_cast<int>(r));
      result.selected_ranks += total[t];
    });
  }
  result.candidate_ranks = result.selected_ranks;  // no rank without selected experts is asked
  return result;
}

namespace {

// 12 bytes per (home, codeword, owner rank) with tokens: codeword, tokens, pairs.
void add_segments(const RoutingTrace& trace, const TokenSpread& spread, const OwnerCounts& owners,
                  StepTraffic& traffic) {
  const int ranks = spread.ranks();
  BitRows of_codeword(trace.codewords(), ranks), peers(1, ranks);
  std::vector<int32_t> present;
  std::vector<bool> seen(static_cast<std::size_t>(trace.codewords()), false);
  for (int u = 0; u < spread.micro_batches(); ++u) {
    for (int h = 0; h < ranks; ++h) {
      present.clear();
      peers.clear();
      spread.for_each(u, h, [&](int64_t t) {
        const int32_t g = trace.codeword[t];
        if (!seen[static_cast<std::size_t>(g)]) present.push_back(g);
        seen[static_cast<std::size_t>(g)] = true;
        unite(of_codeword.row(g), owners.ranks_of(t));
      });
      for (const int32_t g : present) {
        for_each_in(of_codeword.row(g), [&](int64_t r) {
          if (r == h) return;
          traffic.at(Channel::metadata, h).sent += 12;
          traffic.at(Channel::metadata, static_cast<int>(r)).received += 12;
        });
        unite(peers.row(0), of_codeword.row(g));
        const std::span<uint64_t> row = of_codeword.row(g);
        std::fill(row.begin(), row.end(), 0);
        seen[static_cast<std::size_t>(g)] = false;
      }
      traffic.at(Channel::metadata, h).messages += size_of(peers.row(0)) - peers.test(0, h);
    }
  }
}

// Unit centroids of all candidates to everyone; gradients of selected ones back to their owners.
// The gate of a single selected expert is 1 whatever its score, so K = 1 has none.
void add_centroids(const RoutingTrace& trace, const TokenSpread& spread, const Placement& placement,
                   const TrafficShape& shape, StepPrediction& result) {
  CopyTraffic copies(placement, result.traffic);
  BitRows listed(1, trace.experts), selected(1, trace.experts);
  for (const int32_t e : trace.lists) listed.set(0, e);
  HomeSets sets(trace, spread);
  for (int h = 0; h < placement.ranks; ++h) {
    result.load[h].centroids = copies.fetched(h, listed.row(0), shape.dim);
    if (trace.active == 1) continue;
    selected.clear();
    for (int u = 0; u < spread.micro_batches(); ++u) sets.add_selected(u, h, selected.row(0));
    copies.returned(h, selected.row(0), 4 + shape.dim * shape.sum_bytes());
  }
}

}  // namespace

StepPrediction predict_selected(const RoutingTrace& trace, const TokenSpread& spread,
                                const Placement& placement, const TrafficShape& shape) {
  const OwnerCounts owners(trace, placement);
  StepPrediction result = selected_load(trace, spread, placement, owners);
  StepTraffic& traffic = result.traffic;
  add_lists_to_mergers(trace, placement, traffic);
  add_centroids(trace, spread, placement, shape, result);
  add_segments(trace, spread, owners, traffic);
  const auto rows = [&](Channel channel, bool from_home, auto&& bytes_of) {
    count_rows(trace, spread, owners, channel, from_home, bytes_of, traffic);
  };
  rows(Channel::dispatch, true, [&](int64_t n) { return 4 * shape.dim + 4 + 8 * n; });
  rows(Channel::combine, false,
       [&](int64_t n) { return shape.return_bytes(shape.combine_width(), n, trace.active); });
  if (shape.balance) {  // one column more, in messages of its own
    for (int r = 0; r < placement.ranks; ++r) traffic.at(Channel::combine, r).messages *= 2;
  }
  rows(Channel::backward_dispatch, true, [&](int64_t) { return shape.backward_bytes(); });
  rows(Channel::backward_combine, false, [&](int64_t n) {
    return shape.dim * shape.sum_bytes() + 4 * n;  // with the gradient of each gate
  });
  return result;
}

}  // namespace airmoe::scheduler
