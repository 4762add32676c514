#include "scheduler/placement/src/homes.hpp"

#include <algorithm>

#include "comm/base/partition.hpp"

namespace airmoe::scheduler::placement {

std::vector<int32_t> block_homes(int64_t experts, int ranks) {
  const BlockPartition blocks{experts, ranks};
  std::vector<int32_t> home(static_cast<std::size_t>(experts));
  for (int r = 0; r < ranks; ++r) {
    std::fill(home.begin() + blocks.begin(r), home.begin() + blocks.end(r), r);
  }
  return home;
}

std::vector<int32_t> homes_by_use(const Holders& holders, int64_t experts, int ranks) {
  const BlockPartition blocks{experts, ranks};
  std::vector<int64_t> room(static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r) room[r] = blocks.size(r);

  const auto users = [&](int64_t e) {
    int64_t count = 0;
    for (const Holders::Holder& holder : holders.of(static_cast<int32_t>(e))) {
      count += holder.uses > 0;
    }
    return count;
  };
  // Experts with the fewest users first: they have the least choice.
  std::vector<int64_t> begin(static_cast<std::size_t>(ranks) + 2);
  std::vector<int32_t> order(static_cast<std::size_t>(experts));
  for (int64_t e = 0; e < experts; ++e) ++begin[users(e) + 1];
  for (std::size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  const int64_t unused = begin[1];
  for (int64_t e = 0; e < experts; ++e) order[begin[users(e)]++] = static_cast<int32_t>(e);

  std::vector<int32_t> home(static_cast<std::size_t>(experts), -1);
  for (int64_t i = unused; i < experts; ++i) {
    const int32_t e = order[i];
    int best = -1;
    for (const Holders::Holder& holder : holders.of(e)) {
      const int r = holder.rank;
      if (holder.uses == 0 || room[r] == 0) continue;
      if (best < 0 || room[r] > room[best] || (room[r] == room[best] && r < best)) best = r;
    }
    if (best >= 0) home[e] = best, --room[best];
  }
  // What found no room at its users: swap places with an expert that another user has room for.
  std::vector<std::vector<int32_t>> owned(static_cast<std::size_t>(ranks));
  for (int64_t i = experts - 1; i >= unused; --i) {  // experts with most users at the end
    if (home[order[i]] >= 0) owned[home[order[i]]].push_back(order[i]);
  }
  for (auto& list : owned) std::reverse(list.begin(), list.end());
  for (int64_t i = unused; i < experts; ++i) {
    const int32_t e = order[i];
    if (home[e] >= 0) continue;
    for (const Holders::Holder& holder : holders.of(e)) {
      if (holder.uses == 0 || home[e] >= 0) continue;
      // Each expert is looked at once: it leaves the list whether it can make room or not.
      for (auto& list = owned[holder.rank]; !list.empty() && home[e] < 0; list.pop_back()) {
        for (const Holders::Holder& other : holders.of(list.back())) {
          if (other.uses == 0 || room[other.rank] == 0 || other.rank == holder.rank) continue;
          home[list.back()] = other.rank, --room[other.rank];
          home[e] = holder.rank;
          break;
        }
      }
    }
  }
  int next = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (home[e] >= 0) continue;
    while (room[next] == 0) ++next;
    home[e] = next, --room[next];
  }
  return home;
}

}  // namespace airmoe::scheduler::placement
