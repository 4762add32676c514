#include "scheduler/placement/src/swap_experts.hpp"

#include <algorithm>
#include <numeric>

namespace airmoe::scheduler::placement {

void swap_experts(std::span<const double> work, std::span<RankExperts> ranks, double limit,
                  int64_t most_moved, std::span<int32_t> rank_of_expert) {
  const auto lighter = [&](int32_t a, int32_t b) {
    return work[a] != work[b] ? work[a] < work[b] : a < b;
  };
  std::vector<double> load(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    for (const int32_t e : ranks[i].experts) load[i] += work[e];
  }
  const double mean =
      std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());

  for (int64_t moved = 0; moved + 2 <= most_moved;) {
    const auto heavy = std::max_element(load.begin(), load.end()) - load.begin();
    const auto light = std::min_element(load.begin(), load.end()) - load.begin();
    if (load[heavy] <= limit) return;
    std::vector<int32_t>& from = ranks[heavy].experts;
    std::vector<int32_t>& to = ranks[light].experts;
    std::sort(from.begin(), from.end(), lighter);
    std::sort(to.begin(), to.end(), lighter);
    // The heaviest for the lightest, the next heaviest for the next lightest, and so on, what fits.
    double wanted = std::min(load[heavy] - (limit + mean) / 2, mean - load[light]);
    const int64_t before = moved;
    const std::size_t pairs = std::min(from.size(), to.size());
    for (std::size_t i = 0; i < pairs && moved + 2 <= most_moved; ++i) {
      int32_t& up = from[from.size() - 1 - i];
      int32_t& down = to[i];
      const double difference = work[up] - work[down];
      if (difference <= 0) break;
      if (difference > wanted) continue;
      std::swap(rank_of_expert[up], rank_of_expert[down]);
      std::swap(up, down);
      load[heavy] -= difference;
      load[light] += difference;
      wanted -= difference;
      moved += 2;
    }
    if (moved == before) return;
  }
}

}  // namespace airmoe::scheduler::placement
