#include "scheduler/placement/report.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"

namespace airmoe::scheduler {
namespace {

double max_over_mean(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  if (sum <= 0) return 1;
  return *std::max_element(values.begin(), values.end()) * static_cast<double>(values.size()) / sum;
}

}  // namespace

PlacementReport report(const PlanInput& input, const Placement& placement) {
  const auto ranks = static_cast<std::size_t>(input.ranks);
  const int64_t length = input.length;
  PlacementReport out;
  out.owned.assign(ranks, 0);
  out.copies.assign(ranks, 0);
  out.tokens.assign(ranks, 0);
  out.work.assign(ranks, 0);
  for (const int32_t home : placement.home) ++out.owned[static_cast<std::size_t>(home)];

  std::vector<bool> held(ranks * static_cast<std::size_t>(input.experts));
  std::vector<int64_t> candidates(ranks);  // of a part, per rank
  const double elsewhere = static_cast<double>(input.ranks - 1) / input.ranks;
  double visits = 0, all_tokens = 0;
  for (int64_t g = 0; g < placement.codewords(); ++g) {
    const int32_t begin = placement.part_begin[g], end = placement.part_begin[g + 1];
    const int32_t* list = input.lists.data() + g * length;
    const double tokens = input.tokens[g] / (end - begin);
    all_tokens += input.tokens[g];
    for (int64_t p = begin; p < end; ++p) {
      std::fill(candidates.begin(), candidates.end(), 0);
      for (int64_t j = 0; j < length; ++j) {
        const int32_t home = placement.home[list[j]];
        const int rank = placement.copies ? placement.candidate_rank[p * length + j] : home;
        ++candidates[rank];
        if (rank == home) continue;
        const std::size_t bit = static_cast<std::size_t>(rank) * input.experts + list[j];
        if (!held[bit]) ++out.copies[rank];
        held[bit] = true;
      }
      const auto cover =
          std::ssize(candidates) - std::count(candidates.begin(), candidates.end(), 0);
      for (std::size_t r = 0; r < ranks; ++r) {
        if (candidates[r] == 0) continue;
        out.tokens[r] += tokens;
        out.work[r] += tokens * static_cast<double>(candidates[r]);
      }
      visits += tokens * static_cast<double>(cover);
      const double moved = tokens * static_cast<double>(cover) * elsewhere;
      out.token_bytes += moved * input.costs.per_token_rank;
      if (cover > 1) out.shared_bytes += moved * input.costs.shared_token_rank;
    }
  }
  int64_t copies = 0, rows = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    copies += out.copies[r];
    rows = std::max(rows, out.owned[r] + out.copies[r]);
  }
  const auto experts = static_cast<double>(input.experts);
  out.rows_max = static_cast<double>(rows) * input.ranks / experts;
  out.rows_mean = static_cast<double>(input.experts + copies) / experts;
  out.mean_cover = all_tokens > 0 ? visits / all_tokens : 0;
  out.tokens_imbalance = max_over_mean(out.tokens);
  out.work_imbalance = max_over_mean(out.work);
  out.copy_fetch_bytes = static_cast<double>(copies) * input.costs.per_copy_fetch;
  out.copy_return_bytes =
      static_cast<double>(copies) * input.costs.used_fraction * input.costs.per_copy_return;
  return out;
}

int64_t moved_homes(const Placement& before, const Placement& after) {
  AIRMOE_CHECK(before.home.size() == after.home.size(), "placements of {} and {} experts",
               before.home.size(), after.home.size());
  int64_t moved = 0;
  for (std::size_t e = 0; e < before.home.size(); ++e) moved += before.home[e] != after.home[e];
  return moved;
}

void check_placement(const PlanInput& input, const Placement& placement) {
  const int64_t parts = placement.parts();
  AIRMOE_CHECK(
      placement.ranks == input.ranks && std::ssize(placement.home) == input.experts &&
          placement.codewords() == input.codewords && std::ssize(placement.primary) == parts,
      "placement: {} ranks, {} experts, {} codewords, {} primaries for {} parts", placement.ranks,
      placement.home.size(), placement.codewords(), placement.primary.size(), parts);
  const auto in_range = [&](int64_t rank) { return rank >= 0 && rank < input.ranks; };
  AIRMOE_CHECK(
      std::all_of(placement.home.begin(), placement.home.end(), in_range) &&
          std::all_of(placement.primary.begin(), placement.primary.end(), in_range) &&
          std::all_of(placement.candidate_rank.begin(), placement.candidate_rank.end(), in_range),
      "placement: a rank is not in [0, {})", input.ranks);
  AIRMOE_CHECK(placement.part_begin[0] == 0 &&
                   std::adjacent_find(placement.part_begin.begin(), placement.part_begin.end(),
                                      std::greater_equal<>()) == placement.part_begin.end(),
               "placement: a codeword without parts");
  AIRMOE_CHECK(
      std::ssize(placement.candidate_rank) == (placement.copies ? parts * input.length : 0),
      "placement: {} candidate ranks for {} parts of {} entries", placement.candidate_rank.size(),
      parts, input.length);
  const PlacementReport counted = report(input, placement);
  const int64_t limit = row_limit(input.experts, input.ranks, input.copy_budget);
  const BlockPartition blocks{input.experts, input.ranks};
  for (int r = 0; r < input.ranks; ++r) {
    AIRMOE_CHECK(counted.owned[r] == blocks.size(r), "placement: rank {} owns {} experts, not {}",
                 r, counted.owned[r], blocks.size(r));
    AIRMOE_CHECK(counted.owned[r] + counted.copies[r] <= limit,
                 "placement: rank {} has {} rows, more than {}", r,
                 counted.owned[r] + counted.copies[r], limit);
  }
}

}  // namespace airmoe::scheduler
