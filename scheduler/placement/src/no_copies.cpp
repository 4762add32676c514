#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/base/partition.hpp"
#include "scheduler/placement/src/no_copies.hpp"
#include "scheduler/placement/src/parts.hpp"
#include "scheduler/placement/src/plan_steps.hpp"
#include "scheduler/placement/src/spread.hpp"

namespace airmoe::scheduler::placement {
namespace {

/// Tokens of all codewords that an expert is a candidate of. Shape: [E]
std::vector<double> expert_work(const PlanInput& input) {
  std::vector<double> work(static_cast<std::size_t>(input.experts));
  for (int64_t g = 0; g < input.codewords; ++g) {
    for (int64_t j = 0; j < input.length; ++j) {
      work[input.lists[g * input.length + j]] += input.tokens[g];
    }
  }
  return work;
}

}  // namespace

std::vector<int32_t> homes_by_affinity(const PlanInput& input) {
  const BlockPartition blocks{input.experts, input.ranks};
  std::vector<SpreadRank> ranks;
  for (int r = 0; r < input.ranks; ++r)
    ranks.push_back({.rank = r, .room = blocks.size(r), .load = 0});
  const Parts parts = whole_codewords(input);
  std::vector<int32_t> order = heaviest_first(parts);
  std::erase_if(order, [&](int32_t p) { return parts.tokens[p] == 0; });
  std::vector<int32_t> home(static_cast<std::size_t>(input.experts), -1);
  spread_experts(input, parts, order, ranks, home);
  int next = 0;
  for (int32_t& rank : home) {
    if (rank >= 0) continue;
    while (ranks[next].room == 0) ++next;
    rank = next;
    --ranks[next].room;
  }
  balance_homes(input, home, input.experts);
  return home;
}

void balance_homes(const PlanInput& input, std::vector<int32_t>& home, int64_t most_moved) {
  const std::vector<double> work = expert_work(input);
  std::vector<double> load(static_cast<std::size_t>(input.ranks));
  for (std::size_t e = 0; e < home.size(); ++e) load[home[e]] += work[e];
  const double mean = std::accumulate(load.begin(), load.end(), 0.0) / input.ranks;
  std::vector<std::vector<int32_t>> owned(load.size());  // by rising work
  for (int64_t e = 0; e < input.experts; ++e) owned[home[e]].push_back(static_cast<int32_t>(e));
  const auto lighter = [&](int32_t a, int32_t b) {
    return work[a] != work[b] ? work[a] < work[b] : a < b;
  };
  std::vector<char> sorted(load.size());

  for (int64_t moved = 0; moved + 2 <= most_moved; moved += 2) {
    const auto heavy = std::max_element(load.begin(), load.end()) - load.begin();
    const auto light = std::min_element(load.begin(), load.end()) - load.begin();
    if (load[heavy] <= kLoadLimit * mean) return;
    for (const auto r : {heavy, light}) {
      if (!sorted[r]) std::sort(owned[r].begin(), owned[r].end(), lighter);
      sorted[r] = 1;
    }
    // The pair whose difference is nearest to what should move: from two sorted lists, one step at
    // a time.
    const double wanted = std::min(load[heavy] - mean, mean - load[light]);
    std::size_t best_a = 0, best_b = 0, b = 0;
    double best = -1;
    const auto& from = owned[heavy];
    const auto& to = owned[light];
    if (to.empty()) return;  // fewer experts than ranks
    for (std::size_t a = 0; a < from.size(); ++a) {
      while (b + 1 < to.size() && work[from[a]] - work[to[b]] > wanted) ++b;
      const double difference = work[from[a]] - work[to[b]];
      if (difference > best && difference <= wanted) best = difference, best_a = a, best_b = b;
    }
    if (best <= 0) return;
    const int32_t up = from[best_a], down = to[best_b];
    home[up] = static_cast<int32_t>(light);
    home[down] = static_cast<int32_t>(heavy);
    load[heavy] -= best;
    load[light] += best;
    const auto exchange = [&](std::vector<int32_t>& list, std::size_t at, int32_t expert) {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(at));
      list.insert(std::upper_bound(list.begin(), list.end(), expert, lighter), expert);
    };
    exchange(owned[heavy], best_a, down);
    exchange(owned[light], best_b, up);
  }
}

Placement without_copies(const PlanInput& input, std::vector<int32_t> home) {
  Placement out;
  out.ranks = input.ranks;
  out.home = std::move(home);
  out.part_begin.resize(static_cast<std::size_t>(input.codewords) + 1);
  std::iota(out.part_begin.begin(), out.part_begin.end(), 0);
  std::vector<int64_t> entries(static_cast<std::size_t>(input.ranks));
  for (int64_t g = 0; g < input.codewords; ++g) {
    std::fill(entries.begin(), entries.end(), 0);
    for (int64_t j = 0; j < input.length; ++j)
      ++entries[out.home[input.lists[g * input.length + j]]];
    out.primary.push_back(
        static_cast<int32_t>(std::max_element(entries.begin(), entries.end()) - entries.begin()));
  }
  return out;
}

}  // namespace airmoe::scheduler::placement
