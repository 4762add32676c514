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
  std::vector<char> sorted(ranks.size());

  for (int64_t moved = 0; moved + 2 <= most_moved; moved += 2) {
    const auto heavy = std::max_element(load.begin(), load.end()) - load.begin();
    const auto light = std::min_element(load.begin(), load.end()) - load.begin();
    if (load[heavy] <= limit) return;
    for (const auto r : {heavy, light}) {
      if (!sorted[r]) std::sort(ranks[r].experts.begin(), ranks[r].experts.end(), lighter);
      sorted[r] = 1;
    }
    std::vector<int32_t>& from = ranks[heavy].experts;
    std::vector<int32_t>& to = ranks[light].experts;
    if (to.empty()) return;  // fewer experts than ranks
    // The pair whose difference is largest without overshooting: both lists are sorted, one pass.
    const double wanted = std::min(load[heavy] - mean, mean - load[light]);
    std::size_t best_a = 0, best_b = 0, b = 0;
    double best = 0;
    for (std::size_t a = 0; a < from.size(); ++a) {
      while (b + 1 < to.size() && work[from[a]] - work[to[b]] > wanted) ++b;
      const double difference = work[from[a]] - work[to[b]];
      if (difference > best && difference <= wanted) best = difference, best_a = a, best_b = b;
    }
    if (best <= 0) return;
    const int32_t up = from[best_a], down = to[best_b];
    std::swap(rank_of_expert[up], rank_of_expert[down]);
    load[heavy] -= best;
    load[light] += best;
    const auto replace = [&](std::vector<int32_t>& list, std::size_t at, int32_t expert) {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(at));
      list.insert(std::upper_bound(list.begin(), list.end(), expert, lighter), expert);
    };
    replace(from, best_a, down);
    replace(to, best_b, up);
  }
}

}  // namespace airmoe::scheduler::placement
