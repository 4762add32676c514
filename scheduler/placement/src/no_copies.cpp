#include "scheduler/placement/src/no_copies.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "comm/base/partition.hpp"
#include "scheduler/placement/src/parts.hpp"
#include "scheduler/placement/src/plan_steps.hpp"
#include "scheduler/placement/src/spread.hpp"
#include "scheduler/placement/src/swap_experts.hpp"

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
  std::vector<RankExperts> ranks(static_cast<std::size_t>(input.ranks));
  for (int r = 0; r < input.ranks; ++r) ranks[r].rank = r;
  for (int64_t e = 0; e < input.experts; ++e) {
    ranks[home[e]].experts.push_back(static_cast<int32_t>(e));
  }
  const double mean = std::accumulate(work.begin(), work.end(), 0.0) / input.ranks;
  swap_experts(work, ranks, kLoadLimit * mean, most_moved, home);
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
