#include "scheduler/placement/plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/placement/src/codeword_groups.hpp"
#include "scheduler/placement/src/group_refiner.hpp"
#include "scheduler/placement/src/homes.hpp"
#include "scheduler/placement/src/no_copies.hpp"
#include "scheduler/placement/src/plan_steps.hpp"
#include "scheduler/placement/src/refine.hpp"
#include "scheduler/placement/src/spread.hpp"
namespace airmoe::scheduler {
namespace placement {

void check_input(const PlanInput& input) {
  AIRMOE_CHECK(input.ranks >= 1 && input.experts >= 1 && input.codewords >= 0 &&
                   input.length >= 1 && input.length <= input.experts &&
                   std::ssize(input.lists) == input.codewords * input.length &&
                   std::ssize(input.tokens) == input.codewords,
               "plan: {} ranks, {} experts, {} lists of {}: {} entries, {} token counts",
               input.ranks, input.experts, input.codewords, input.length, input.lists.size(),
               input.tokens.size());
  if (input.ranks > std::numeric_limits<uint16_t>::max()) {
    fail(ExitCode::config, "{} ranks: placements are limited to {}", input.ranks,
         std::numeric_limits<uint16_t>::max());
  }
  if (!(input.copy_budget >= 1) || !std::isfinite(input.copy_budget)) {
    fail(ExitCode::config,
         "copy budget {}: give a multiple of E / ranks of at least 1 (1: no copies)",
         input.copy_budget);
  }
}

int64_t limit_with_reserve(const PlanInput& input, double reserve) {
  const int64_t owned = (input.experts + input.ranks - 1) / input.ranks;
  const int64_t limit = row_limit(input.experts, input.ranks, input.copy_budget);
  if (limit == input.experts) return limit;  // room for all
  return owned + static_cast<int64_t>(static_cast<double>(limit - owned) * (1 - reserve));
}

bool allows_copies(const PlanInput& input) {
  return row_limit(input.experts, input.ranks, input.copy_budget) >
         (input.experts + input.ranks - 1) / input.ranks;
}

struct Groups {
  int64_t count = 1;  // of consecutive ranks
  std::vector<int32_t> of_part;
};

/// Looks at no more entries than it takes to see which lists are alike.
int64_t sample_stride(const PlanInput& input, const Parts& parts) {
  return std::max<int64_t>(1, parts.count() * input.length / kSampledEntries);
}

/// Sampled experts that each group needs. Shape: [groups]
std::vector<int64_t> experts_of_groups(const PlanInput& input, const InvertedLists& lists,
                                       const std::vector<int32_t>& group, int64_t groups) {
  std::vector<int64_t> count(static_cast<std::size_t>(groups));
  std::vector<int64_t> last(count.size(), -1);  // expert counted last
  for (int64_t e = 0; e < input.experts; ++e) {
    for (const int32_t p : lists.parts_of(e)) {
      const int32_t g = group[p];
      if (last[g] != e) last[g] = e, ++count[g];
    }
  }
  return count;
}

/// As many groups of parts as fit the row limit: with as many groups as ranks every part has one
/// rank; with fewer, the ranks of a group share the experts of its lists.
Groups choose_groups(const PlanInput& input, const Parts& parts) {
  const double tokens = std::accumulate(parts.tokens.begin(), parts.tokens.end(), 0.0);
  const InvertedLists lists(input, parts, sample_stride(input, parts));
  const CodewordGraph graph(input, parts, lists);
  const auto limit = static_cast<double>(limit_with_reserve(input, kPlanReserve));
  std::vector<int64_t> counts;  // of groups, to try
  for (int64_t size = 1; counts.empty() || counts.back() > 1; size += (size + 2) / 3) {
    counts.push_back(std::max<int64_t>(1, input.ranks / size));
  }
  const auto shares = [&](int64_t count) {
    std::vector<double> share;
    const BlockPartition ranks{input.ranks, count};
    for (int64_t g = 0; g < count; ++g) {
      share.push_back(static_cast<double>(ranks.size(g)) / input.ranks);
    }
    return share;
  };
  const auto refiner = [&](int64_t count) {
    const std::vector<double> share = shares(count);
    std::vector<double> most;
    for (const double s : share) {
      most.push_back((count == input.ranks ? kLoadLimit : kGroupLimit) * tokens * s);
    }
    return GroupRefiner(input, parts, lists, graph.partition(share), most);
  };
  const auto too_many = [&](int64_t count) {
    if (count == 1) return false;
    const std::vector<int64_t> experts =
        experts_of_groups(input, lists, graph.partition(shares(count)), count);
    const BlockPartition ranks{input.ranks, count};
    for (int64_t g = 0; g < count; ++g) {
      const double needed = kRefinedRows * static_cast<double>(experts[g] * lists.stride());
      if (needed > limit * static_cast<double>(ranks.size(g))) return true;
    }
    return false;
  };
  // No rank needs more than all candidates, so that much memory allows any number.
  const bool any = limit >= static_cast<double>(input.experts);
  const int64_t count =
      any ? counts.front() : *std::partition_point(counts.begin(), counts.end(), too_many);
  GroupRefiner best = refiner(count);
  best.run(kGroupSweeps);
  return {count, best.group()};
}

void place_groups(Search& search, const Groups& groups, const std::vector<int32_t>& order) {
  const PlanInput& input = search.input();
  const BlockPartition blocks{input.ranks, groups.count};
  std::vector<std::vector<int32_t>> parts(static_cast<std::size_t>(groups.count));
  for (const int32_t p : order) {
    if (search.parts().tokens[p] > 0) parts[groups.of_part[p]].push_back(p);
  }
  Buffer<uint16_t> ranks(search.parts().count() * input.length, Search::kNotPlaced);
  std::vector<int32_t> rank_of_expert;
  for (int64_t g = 0; g < groups.count; ++g) {
    std::vector<SpreadRank> members;
    for (int64_t r = blocks.begin(g); r < blocks.end(g); ++r) {
      members.push_back({.rank = static_cast<int>(r), .room = search.row_limit(), .load = 0});
    }
    if (members.size() > 1) {
      rank_of_expert.assign(static_cast<std::size_t>(input.experts), -1);
      spread_experts(input, search.parts(), parts[g], members, rank_of_expert);
    }
    for (const int32_t p : parts[g]) {
      const std::span<const int32_t> list = search.list(p);
      for (int64_t j = 0; j < input.length; ++j) {
        ranks[p * input.length + j] = static_cast<uint16_t>(
            members.size() > 1 ? rank_of_expert[list[j]] : members.front().rank);
      }
    }
  }
  search.place_all(std::move(ranks));
}

/// Sets owners, where the candidates of codewords without tokens are scored.
void set_homes(Search& search, const std::vector<int32_t>& home) {
  search.set_homes(home);
  for (int64_t p = 0; p < search.parts().count(); ++p) {
    if (search.parts().tokens[p] == 0) search.place_at_homes(p);
  }
}

/// Sweeps over all parts, heaviest first; owners follow use if `owners` is not null.
void sweep_covers(Search& search, const std::vector<int32_t>& order, std::vector<int32_t>* owners) {
  const PlanInput& input = search.input();
  const double visits = static_cast<double>(std::ssize(input.lists) * search.total_rows()) /
                        static_cast<double>(input.experts);
  const int sweeps = visits > kManyVisits ? 1 : kCoverSweeps;
  for (int s = 0; s < sweeps; ++s) {
    refine_covers(search, order, true);
    if (owners == nullptr) continue;
    const bool within = search.within_row_limit();
    std::vector<int32_t> better = homes_by_use(search.holders(), input.experts, input.ranks);
    set_homes(search, better);
    if (within && !search.within_row_limit()) {
      set_homes(search, *owners);
    } else {
      *owners = std::move(better);
    }
  }
}

Placement plan_with_copies(const PlanInput& input, const std::vector<int32_t>* home) {
  const Parts parts = split_codewords(input);
  const std::vector<int32_t> order = heaviest_first(parts);
  const Groups groups = choose_groups(input, parts);
  Search search(input, parts, limit_with_reserve(input, kPlanReserve));
  if (groups.count == 1) {  // hardly room for copies: those that help most on top of none
    search.set_homes(home != nullptr ? *home : homes_by_affinity(input));
    for (const int32_t p : order) search.place_at_homes(p);
    sweep_covers(search, order, nullptr);
  } else {
    place_groups(search, groups, order);
    std::vector<int32_t> owners =
        home != nullptr ? *home : homes_by_use(search.holders(), input.experts, input.ranks);
    set_homes(search, owners);
    sweep_covers(search, order, home == nullptr ? &owners : nullptr);
  }
  meet_row_limit(search);
  balance_work(search, order);
  return placement_of(search);
}

Placement placement_of(const Search& search) {
  const PlanInput& input = search.input();
  const int64_t parts = search.parts().count();
  Placement out;
  out.ranks = input.ranks;
  out.copies = true;
  out.part_begin = search.parts().begin;
  out.home.resize(static_cast<std::size_t>(input.experts));
  for (int64_t e = 0; e < input.experts; ++e) {
    out.home[e] = search.holders().home(static_cast<int32_t>(e));
  }
  out.primary.reserve(static_cast<std::size_t>(parts));
  for (int64_t p = 0; p < parts; ++p) out.primary.push_back(search.primary(p));
  const std::span<const uint16_t> ranks = search.all_ranks();
  out.candidate_rank.assign(ranks.begin(), ranks.end());
  return out;
}

}  // namespace placement

int64_t row_limit(int64_t experts, int ranks, double copy_budget) {
  const int64_t owned = (experts + ranks - 1) / ranks;
  // The small term: 1.1 * 10 rows are 11, whatever the last bit of 1.1 says.
  const double rows = std::floor(copy_budget * static_cast<double>(experts) / ranks + 1e-6);
  if (rows >= static_cast<double>(experts)) return experts;
  return std::max(owned, static_cast<int64_t>(rows));
}

Placement plan(const PlanInput& input) {
  placement::check_input(input);
  const auto blocks = [&] { return placement::block_homes(input.experts, input.ranks); };
  if (!placement::allows_copies(input)) {
    return placement::without_copies(
        input, input.move_homes ? placement::homes_by_affinity(input) : blocks());
  }
  if (input.move_homes) return placement::plan_with_copies(input, nullptr);
  const std::vector<int32_t> home = blocks();
  return placement::plan_with_copies(input, &home);
}

}  // namespace airmoe::scheduler
