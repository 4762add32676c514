// An incremental plan: parts stay where they are unless their list, their tokens or a limit asks
// for something else.

#include <algorithm>
#include <utility>
#include <vector>

#include "comm/base/error.hpp"
#include "scheduler/placement/carry_over.hpp"
#include "scheduler/placement/src/home_swaps.hpp"
#include "scheduler/placement/src/no_copies.hpp"
#include "scheduler/placement/src/plan_steps.hpp"
#include "scheduler/placement/src/refine.hpp"

namespace airmoe::scheduler {
namespace placement {
namespace {

// Share of a list that is new from which on the part looks for another place.
constexpr double kNewList = 0.1;
/// Places every part as before as far as its list is the same.
/// @return parts that should look for a better place: new ones, and those whose list is another
std::vector<int32_t> carry_parts(Search& search, const Placement& previous,
                                 std::span<const int32_t> old_lists) {
  const PlanInput& input = search.input();
  const Parts& parts = search.parts();
  const auto length = static_cast<std::size_t>(input.length);
  CarryOver carry(input.experts);
  Buffer<uint16_t> ranks(parts.count() * input.length);
  std::vector<int32_t> moved;
  for (int64_t g = 0; g < input.codewords; ++g) {
    const std::span<const int32_t> list = input.lists.subspan(g * length, length);
    const std::span<const int32_t> before =
        old_lists.empty() ? list : old_lists.subspan(g * length, length);
    const bool same = old_lists.empty() || std::equal(list.begin(), list.end(), before.begin());
    const int32_t had = previous.part_begin[g + 1] - previous.part_begin[g];
    for (int32_t p = parts.begin[g]; p < parts.begin[g + 1]; ++p) {
      const int32_t i = p - parts.begin[g];
      const int64_t old = previous.part_begin[g] + i % had;
      const auto old_ranks = std::span(previous.candidate_rank)
                                 .subspan(static_cast<std::size_t>(old) * length, length);
      const auto new_ranks = ranks.span().subspan(static_cast<std::size_t>(p) * length, length);
      int64_t fresh = 0;
      if (same) {
        std::copy(old_ranks.begin(), old_ranks.end(), new_ranks.begin());
      } else {
        fresh = carry(before, old_ranks, list, previous.home, previous.primary[old], input.ranks,
                      new_ranks);
      }
      const bool other_list = static_cast<double>(fresh) > kNewList * static_cast<double>(length);
      if (i >= had || other_list) moved.push_back(p);
    }
  }
  search.place_all(std::move(ranks));
  return moved;
}

Placement replan_copies(const PlanInput& input, const Placement& previous,
                        std::span<const int32_t> previous_lists, const ReplanLimits& limits) {
  const Parts parts = keep_parts(input, previous.part_begin);
  const std::vector<int32_t> order = heaviest_first(parts);
  Search search(input, parts, limit_with_reserve(input, kReplanReserve));
  search.set_homes(previous.home);
  const std::vector<int32_t> moved = carry_parts(search, previous, previous_lists);
  refine_covers(search, moved, true);
  balance_work(search, order);
  meet_row_limit(search);
  if (input.move_homes) {
    const auto most = static_cast<int64_t>(limits.moved_homes * static_cast<double>(input.experts));
    search.set_homes(swap_homes(search.holders(), previous.home, input.ranks, most));
    meet_row_limit(search);
  }
  return placement_of(search);
}

}  // namespace
}  // namespace placement

Placement replan(const PlanInput& input, const Placement& previous,
                 std::span<const int32_t> previous_lists, const ReplanLimits& limits) {
  placement::check_input(input);
  AIRMOE_CHECK(previous.ranks == input.ranks && std::ssize(previous.home) == input.experts &&
                   previous.codewords() == input.codewords &&
                   (previous_lists.empty() || previous_lists.size() == input.lists.size()),
               "replan: the previous placement has {} ranks, {} experts, {} codewords",
               previous.ranks, previous.home.size(), previous.codewords());
  if (!placement::allows_copies(input)) {
    std::vector<int32_t> home = previous.home;
    const auto most = static_cast<int64_t>(limits.moved_homes * static_cast<double>(input.experts));
    if (input.move_homes) placement::balance_homes(input, home, most);
    return placement::without_copies(input, std::move(home));
  }
  if (!previous.copies) return placement::plan_with_copies(input, &previous.home);
  return placement::replan_copies(input, previous, previous_lists, limits);
}

}  // namespace airmoe::scheduler
