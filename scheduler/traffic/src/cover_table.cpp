#include "scheduler/traffic/cover_table.hpp"

#include <limits>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {

CoverTable::CoverTable(const RoutingTrace& trace, const Placement& placement)
    : ranks_(placement.ranks),
      length_(trace.length),
      begin_{0},
      index_(static_cast<std::size_t>(placement.parts() * placement.ranks), -1),
      scorer_(static_cast<std::size_t>(placement.parts() * trace.length)),
      sets_(placement.parts(), placement.ranks) {
  AIRMOE_CHECK(
      placement.codewords() == trace.codewords() && std::ssize(placement.home) == trace.experts &&
          ranks_ >= 1 && ranks_ <= std::numeric_limits<int16_t>::max(),
      "a placement of {} codewords and {} experts on {} ranks for "
      "lists of {} and {}",
      placement.codewords(), placement.home.size(), ranks_, trace.codewords(), trace.experts);
  const bool chosen = !placement.candidate_rank.empty();
  AIRMOE_CHECK(!chosen || std::ssize(placement.candidate_rank) == placement.parts() * length_,
               "{} scorers for {} parts of {} candidates", placement.candidate_rank.size(),
               placement.parts(), length_);
  std::vector<int32_t> count(static_cast<std::size_t>(ranks_));
  for (int64_t g = 0; g < trace.codewords(); ++g) {
    const std::span<const int32_t> list = trace.list(g);
    for (int64_t v = placement.part_begin[g]; v < placement.part_begin[g + 1]; ++v) {
      const auto rank_of = [&](int64_t j) -> int32_t {
        return chosen ? placement.candidate_rank[v * length_ + j] : placement.home[list[j]];
      };
      std::fill(count.begin(), count.end(), 0);
      for (int64_t j = 0; j < length_; ++j) ++count[rank_of(j)];
      for (int r = 0; r < ranks_; ++r) {
        if (count[r] == 0) continue;
        index_[v * ranks_ + r] = static_cast<int16_t>(std::ssize(rank_) - begin_.back());
        rank_.push_back(r);
        candidates_.push_back(count[r]);
        sets_.set(v, r);
      }
      begin_.push_back(std::ssize(rank_));
      for (int64_t j = 0; j < length_; ++j) {
        scorer_[v * length_ + j] = index_[v * ranks_ + rank_of(j)];
      }
    }
  }
}

std::vector<int64_t> owned_by_rank(const Placement& placement) {
  std::vector<int64_t> owned(static_cast<std::size_t>(placement.ranks), 0);
  for (const int32_t r : placement.home) ++owned[r];
  return owned;
}

Placement block_placement(int64_t experts, int64_t codewords, int ranks) {
  Placement p;
  p.ranks = ranks;
  p.home.resize(static_cast<std::size_t>(experts));
  const BlockPartition blocks{experts, ranks};
  for (int64_t e = 0; e < experts; ++e) p.home[e] = static_cast<int32_t>(blocks.owner(e));
  p.part_begin.resize(static_cast<std::size_t>(codewords) + 1);
  std::iota(p.part_begin.begin(), p.part_begin.end(), 0);
  p.primary.assign(static_cast<std::size_t>(codewords), 0);
  return p;
}

Placement random_placement(int64_t experts, int64_t codewords, int ranks, uint64_t seed) {
  Placement p = block_placement(experts, codewords, ranks);
  const BlockPartition blocks{experts, ranks};
  const RandomPermutation place(RandomStream(seed, Purpose::test_data),
                                static_cast<uint64_t>(experts));
  for (int64_t e = 0; e < experts; ++e) {
    const auto at = static_cast<int64_t>(place(static_cast<uint64_t>(e)));
    p.home[e] = static_cast<int32_t>(blocks.owner(at));
  }
  return p;
}

}  // namespace airmoe::scheduler
