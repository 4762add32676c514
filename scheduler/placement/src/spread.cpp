#include "scheduler/placement/src/spread.hpp"

#include <algorithm>
#include <numeric>

#include "scheduler/placement/src/plan_steps.hpp"
#include "scheduler/placement/src/swap_experts.hpp"

namespace airmoe::scheduler::placement {

void spread_experts(const PlanInput& input, const Parts& parts,
                    std::span<const int32_t> parts_of_group, std::span<SpreadRank> ranks,
                    std::span<int32_t> rank_of_expert) {
  const auto list = [&](int32_t part) {
    return input.lists.subspan(static_cast<std::size_t>(parts.codeword[part] * input.length),
                               static_cast<std::size_t>(input.length));
  };
  std::vector<double> work(rank_of_expert.size());
  double all = 0;
  for (const int32_t p : parts_of_group) {
    for (const int32_t e : list(p)) work[e] += parts.tokens[p];
    all += parts.tokens[p] * static_cast<double>(input.length);
  }
  const double limit = kLoadLimit * all / static_cast<double>(ranks.size());

  // Parts with most tokens choose first: what has no rank yet goes where most of the list is, then
  // to the rank with least work.
  const auto count = ranks.size();
  std::vector<int64_t> entries(count), index(static_cast<std::size_t>(input.ranks));
  for (std::size_t i = 0; i < count; ++i) index[ranks[i].rank] = static_cast<int64_t>(i);
  std::vector<std::size_t> order(count);
  std::vector<int32_t> rest, late;
  for (const int32_t p : parts_of_group) {
    std::fill(entries.begin(), entries.end(), 0);
    rest.clear();
    for (const int32_t e : list(p)) {
      if (rank_of_expert[e] >= 0) {
        ++entries[index[rank_of_expert[e]]];
      } else {
        rest.push_back(e);
      }
    }
    if (rest.empty()) continue;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return entries[a] != entries[b] ? entries[a] > entries[b] : ranks[a].load < ranks[b].load;
    });
    for (const std::size_t i : order) {
      SpreadRank& r = ranks[i];
      std::erase_if(rest, [&](int32_t e) {
        if (r.room == 0 || r.load + work[e] > limit) return false;
        rank_of_expert[e] = r.rank;
        r.load += work[e];
        --r.room;
        return true;
      });
      if (rest.empty()) break;
    }
    // No rank had room for this work: later, wherever there is least. Marked, so that no later part
    // finds them without a rank.
    for (const int32_t e : rest) rank_of_expert[e] = ranks[order.front()].rank;
    late.insert(late.end(), rest.begin(), rest.end());
  }
  std::stable_sort(late.begin(), late.end(),
                   [&](int32_t a, int32_t b) { return work[a] > work[b]; });
  for (const int32_t e : late) {
    SpreadRank* best = nullptr;
    for (SpreadRank& r : ranks) {
      const bool better = best == nullptr || (r.room > 0) > (best->room > 0) ||
                          ((r.room > 0) == (best->room > 0) && r.load < best->load);
      if (better) best = &r;
    }
    rank_of_expert[e] = best->rank;
    best->load += work[e];
    best->room = std::max<int64_t>(0, best->room - 1);
  }
  if (late.empty()) return;
  std::vector<RankExperts> owners(count);
  for (std::size_t i = 0; i < count; ++i) owners[i].rank = ranks[i].rank;
  for (std::size_t e = 0; e < rank_of_expert.size(); ++e) {
    if (rank_of_expert[e] >= 0) {
      owners[index[rank_of_expert[e]]].experts.push_back(static_cast<int32_t>(e));
    }
  }
  swap_experts(work, owners, limit, std::ssize(rank_of_expert), rank_of_expert);
}

}  // namespace airmoe::scheduler::placement
