#include "scheduler/placement/src/refine.hpp"

#include <algorithm>
#include <span>

namespace airmoe::scheduler::placement {
namespace {

/// A part that has copies on a rank, and how many for each of its tokens.
struct Choice {
  double copies_per_token;
  int32_t part;
};

/// Parts with copies on each of the ranks beyond their limit, those with most copies per token
/// first. Empty for other ranks. Shape: [R]
std::vector<std::vector<Choice>> choices_of_ranks(const Search& search) {
  constexpr int64_t kLooked = 64;  // entries of a part on a rank that its copies are judged by
  const Holders& holders = search.holders();
  const auto ranks = static_cast<std::size_t>(search.input().ranks);
  std::vector<char> over(ranks);
  for (std::size_t r = 0; r < ranks; ++r) over[r] = holders.rows()[r] > search.row_limit();
  std::vector<std::vector<Choice>> out(ranks);
  std::vector<int64_t> entries(ranks), looked(ranks);
  std::vector<double> copies(ranks);
  std::vector<int> cover;  // its ranks beyond their limit
  for (int32_t p = 0; p < search.parts().count(); ++p) {
    const std::span<const int32_t> list = search.list(p);
    const std::span<const uint16_t> at = search.ranks(p);
    for (const uint16_t r : at) ++entries[r];
    cover.clear();
    for (const uint16_t r : at) {
      if (over[r] && entries[r] > 0 && looked[r]++ == 0) cover.push_back(r);
    }
    for (const int r : cover) looked[r] = 0;
    if (!cover.empty()) {
      for (std::size_t j = 0; j < list.size(); ++j) {
        const int r = at[j];
        if (!over[r] || looked[r] == kLooked) continue;
        ++looked[r];  // a copy that n parts need counts 1 / n for each
        if (!holders.owns(list[j], r)) copies[r] += 1.0 / holders.uses(list[j], r);
      }
    }
    for (const int r : cover) {
      const double all =
          copies[r] * static_cast<double>(entries[r]) / static_cast<double>(looked[r]);
      if (all > 0) out[r].push_back({all / (1e-9 + search.parts().tokens[p]), p});
      looked[r] = 0;
      copies[r] = 0;
    }
    for (const uint16_t r : at) entries[r] = 0;
  }
  for (std::vector<Choice>& choices : out) {
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
      return a.copies_per_token > b.copies_per_token;
    });
  }
  return out;
}

/// Takes copies from a rank until it is within its limit.
void shed_rows(Search& search, int rank, std::span<const Choice> choices) {
  const Holders& holders = search.holders();
  // Rows that end if the part leaves.
  const auto has_own_rows = [&](int32_t p) {
    const std::span<const int32_t> list = search.list(p);
    const std::span<const uint16_t> at = search.ranks(p);
    for (std::size_t j = 0; j < list.size(); ++j) {
      if (at[j] == rank && !holders.owns(list[j], rank) && holders.uses(list[j], rank) == 1)
        return true;
    }
    return false;
  };
  for (const Choice& choice : choices) {
    if (holders.rows()[rank] <= search.row_limit()) return;
    if (has_own_rows(choice.part)) search.place_at_least_cost(choice.part, true);
  }
  // Copies that parts share may have stayed: entry by entry, to other ranks that have the expert.
  for (const Choice& choice : choices) {
    const std::span<const int32_t> list = search.list(choice.part);
    for (int64_t j = 0; j < std::ssize(list); ++j) {
      if (holders.rows()[rank] <= search.row_limit()) return;
      if (search.ranks(choice.part)[j] != rank || holders.owns(list[j], rank)) continue;
      search.move_entry(choice.part, j, search.least_loaded_holder(list[j], rank));
    }
  }
}

/// Where entries may go that a rank has too much work for: to ranks of the part's cover that have
/// the expert, to ranks of the cover that may copy it, to any rank that has the expert.
enum class Shift { to_rows, to_copies, to_any_holder };

/// Moves single entries until the rank has no more work than it should.
void shift_work(Search& search, const std::vector<int32_t>& order, int rank, Shift shift) {
  const Holders& holders = search.holders();
  const double limit = search.load_limit();
  std::vector<char> in_cover(static_cast<std::size_t>(search.input().ranks));
  std::vector<int> cover;
  for (const int32_t p : order) {
    const double tokens = search.parts().tokens[p];
    if (search.load(rank) <= limit || tokens == 0) return;
    std::fill(in_cover.begin(), in_cover.end(), 0);
    cover.clear();
    for (const uint16_t r : search.ranks(p)) {
      if (in_cover[r] == 0) cover.push_back(r);
      in_cover[r] = 1;
    }
    if (in_cover[rank] == 0) continue;
    const std::span<const int32_t> list = search.list(p);
    for (int64_t j = 0; j < std::ssize(list) && search.load(rank) > limit; ++j) {
      if (search.ranks(p)[j] != rank) continue;
      int to = -1;
      const auto consider = [&](int r) {
        if (r == rank || search.load(r) + tokens > limit) return;
        if (to < 0 || search.load(r) < search.load(to)) to = r;
      };
      if (shift == Shift::to_copies) {
        for (const int r : cover) {
          if (holders.rows()[r] < search.row_limit()) consider(r);
        }
      } else {
        for (const Holders::Holder& holder : holders.of(list[j])) {
          if (shift == Shift::to_any_holder || in_cover[holder.rank]) consider(holder.rank);
        }
      }
      if (to >= 0) search.move_entry(p, j, to);
    }
  }
}

}  // namespace

void refine_covers(Search& search, const std::vector<int32_t>& order, bool strict) {
  for (const int32_t p : order) {
    if (search.parts().tokens[p] > 0) search.place_at_least_cost(p, strict);
  }
}

void balance_work(Search& search, const std::vector<int32_t>& order) {
  const auto too_much = [&](int r) { return search.load(r) > search.load_limit(); };
  const int ranks = search.input().ranks;
  const auto balanced = [&] {
    for (int r = 0; r < ranks; ++r) {
      if (too_much(r)) return false;
    }
    return true;
  };
  if (balanced()) return;
  for (const Shift shift : {Shift::to_rows, Shift::to_copies}) {
    for (int r = 0; r < ranks; ++r) shift_work(search, order, r, shift);
  }
  if (balanced()) return;
  for (const int32_t p : order) {
    const std::span<const uint16_t> at = search.ranks(p);
    if (search.parts().tokens[p] > 0 && std::any_of(at.begin(), at.end(), too_much)) {
      search.place_at_least_cost(p, true);
    }
  }
  for (int r = 0; r < ranks; ++r) shift_work(search, order, r, Shift::to_any_holder);
}

void meet_row_limit(Search& search) {
  while (!search.within_row_limit()) {
    const std::vector<std::vector<Choice>> choices = choices_of_ranks(search);
    const int64_t before = search.total_rows();
    for (int r = 0; r < search.input().ranks; ++r) {
      if (search.holders().rows()[r] > search.row_limit()) shed_rows(search, r, choices[r]);
    }
    if (search.total_rows() >= before) return;
  }
}

}  // namespace airmoe::scheduler::placement
