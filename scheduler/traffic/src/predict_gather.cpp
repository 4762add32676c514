#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/predict.hpp"
#include "scheduler/traffic/src/copy_traffic.hpp"
#include "scheduler/traffic/src/home_sets.hpp"

namespace airmoe::scheduler {

StepPrediction predict_gather(const RoutingTrace& trace, const TokenSpread& spread,
                              const Placement& placement, const TrafficShape& shape) {
  const int ranks = placement.ranks;
  AIRMOE_CHECK(spread.ranks() == ranks, "a spread over {} ranks, a placement on {}", spread.ranks(),
               ranks);
  StepPrediction result;
  result.traffic = StepTraffic(ranks);
  result.load.resize(static_cast<std::size_t>(ranks));
  const std::vector<int64_t> owned = owned_by_rank(placement);
  const BlockPartition merged{trace.codewords(), ranks};
  add_lists_to_mergers(trace, placement, result.traffic);

  HomeSets sets(trace, spread);
  CopyTraffic copies(placement, result.traffic);
  BitRows candidates(1, trace.experts), in_batch(1, trace.experts), in_step(1, trace.experts);
  std::vector<bool> present(static_cast<std::size_t>(trace.codewords()));
  for (int h = 0; h < ranks; ++h) {
    candidates.clear();
    in_step.clear();
    std::fill(present.begin(), present.end(), false);
    RankLoad& load = result.load[h];
    for (int u = 0; u < spread.micro_batches(); ++u) {
      in_batch.clear();
      sets.add_candidates(u, h, candidates.row(0));
      sets.add_selected(u, h, in_batch.row(0));
      unite(in_step.row(0), in_batch.row(0));
      copies.counted(h, in_batch.row(0));
      for (const TokenRun& run : spread.runs(u, h)) load.tokens += run.count;
      spread.for_each(u, h, [&](int64_t t) { present[trace.codeword[t]] = true; });
    }
    load.scored = load.tokens * trace.length;
    load.selected = load.tokens * trace.active;
    load.owned = owned[h];
    load.copies = copies.fetched(h, candidates.row(0), shape.dim);
    copies.fetched(h, in_step.row(0), shape.used_values());
    copies.returned(h, in_step.row(0), shape.copy_gradient_bytes());
    result.tokens += load.tokens;
    // The lists of the codewords of its tokens come from their mergers.
    for (int merger = 0; merger < ranks; ++merger) {
      const int64_t lists = std::count(present.begin() + merged.begin(merger),
                                       present.begin() + merged.end(merger), true);
      if (merger != h && lists > 0) {
        result.traffic.message(Channel::lists, merger, h, 4 * lists * trace.length);
      }
    }
  }
  result.candidate_ranks = result.tokens;
  result.selected_ranks = result.tokens;
  return result;
}

}  // namespace airmoe::scheduler
