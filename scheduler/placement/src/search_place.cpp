// Where one part goes.

#include <algorithm>
#include <limits>
#include <numeric>

#include "scheduler/placement/src/search.hpp"

namespace airmoe::scheduler::placement {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr std::size_t kAhead = 12;  // entries, for prefetching
constexpr uint16_t kNoRank = std::numeric_limits<uint16_t>::max();
constexpr double kMostRoom = 1e15;  // entries

}  // namespace

void Search::count_without(int64_t part) {
  const std::span<const int32_t> experts = list(part);
  std::fill(present_.begin(), present_.end(), 0);
  std::fill(own_rows_.begin(), own_rows_.end(), 0);
  std::fill(own_entries_.begin(), own_entries_.end(), 0);
  const uint16_t* own = rank_.data() + part * input_.length;
  const bool placed = placed_[part];
  for (std::size_t j = 0; j < experts.size(); ++j) {
    holders_.prefetch(experts[std::min(j + kAhead, experts.size() - 1)]);
    const std::span<const Holders::Holder> holders = holders_.of(experts[j]);
    for (const Holders::Holder& holder : holders) ++present_[holder.rank];
    if (!placed) continue;
    ++own_entries_[own[j]];
    for (const Holders::Holder& holder : holders) {
      if (holder.rank == own[j] && !holders_.stays_without(holder, &holder == holders.data())) {
        ++own_rows_[own[j]];
      }
    }
  }
  for (std::size_t r = 0; r < present_.size(); ++r) present_[r] -= own_rows_[r];
}

double Search::overload(int64_t part, int rank, int64_t entries) const {
  const double tokens = parts_.tokens[part];
  const double without = load_[rank] - tokens * static_cast<double>(own_entries_[rank]);
  const double with = without + tokens * static_cast<double>(entries);
  const double excess = std::max(0.0, with - load_limit_) - std::max(0.0, without - load_limit_);
  return excess <= 0 ? 0 : 1e7 * (1 + input_.costs.per_copy()) * excess / load_limit_;
}

double Search::cost_now(int64_t part) const {
  int64_t cover = 0, rows = 0;
  double cost = 0;
  for (int r = 0; r < input_.ranks; ++r) {
    if (own_entries_[r] == 0) continue;
    ++cover;
    rows += own_rows_[r];
    cost += overload(part, r, own_entries_[r]);
  }
  return cost + static_cast<double>(rows) * input_.costs.per_copy() +
         parts_.tokens[part] * elsewhere_ * input_.costs.per_token(cover);
}

void Search::count_room(int64_t part) {
  const double tokens = parts_.tokens[part];
  for (std::size_t r = 0; r < room_.size(); ++r) {
    const double room = std::max(0.0, (load_limit_ - load_[r]) / tokens);
    room_[r] = own_entries_[r] + static_cast<int64_t>(std::min(room, kMostRoom));
  }
}

void Search::index_holders(int64_t part) {
  const std::span<const int32_t> experts = list(part);
  held_begin_.resize(present_.size() + 1);
  held_begin_[0] = 0;
  std::partial_sum(present_.begin(), present_.end(), held_begin_.begin() + 1);
  held_.ensure(held_begin_.back());
  for (std::size_t j = 0; j < experts.size(); ++j) {
    holders_.prefetch(experts[std::min(j + kAhead, experts.size() - 1)]);
    for_each_holder(part, static_cast<int64_t>(j),
                    [&](int rank) { held_[held_begin_[rank]++] = static_cast<int32_t>(j); });
  }
  // Filling moved every begin to the next one's place.
  std::copy_backward(held_begin_.begin(), held_begin_.end() - 1, held_begin_.end());
  held_begin_[0] = 0;
}

void Search::place_at_least_cost(int64_t part, bool strict) {
  const std::span<const int32_t> experts = list(part);
  const bool placed = placed_[part];
  const double tokens = parts_.tokens[part] * elsewhere_, copy = input_.costs.per_copy();
  count_without(part);
  const std::span<const int64_t> rows = holders_.rows();
  const auto fits = [&](int r, int64_t more) {
    return !strict || more == 0 || more <= row_limit_ - rows[r] + own_rows_[r];
  };

  int best_rank = -1;  // of copies
  std::size_t best_cover = 0;
  bool must_move = !placed;
  for (int r = 0; r < input_.ranks && strict; ++r) {
    must_move = must_move || (own_rows_[r] > 0 && rows[r] > row_limit_);
  }
  double least = must_move ? kInfinite : cost_now(part);
  bool better = false;  // than now
  for (int r = 0; r < input_.ranks; ++r) {
    const int64_t missing = input_.length - present_[r];
    if (!fits(r, missing)) continue;
    const double cost = tokens * input_.costs.per_token(1) + copy * static_cast<double>(missing) +
                        overload(part, r, input_.length);
    if (cost < least) least = cost, best_rank = r, better = true;
  }

  // A wider cover: always the rank that holds most of what has no rank yet. What is left when the
  // cover has k ranks becomes copies on one of them.
  std::vector<uint16_t>& found = new_rank_;  // place in cover_ of the rank that holds the entry
  std::fill(found.begin(), found.end(), kNoRank);
  cover_.clear();
  taken_.clear();
  double too_much = 0;
  int64_t left = input_.length;
  // A single rank was weighed above: only go on if two can be better.
  if (tokens * input_.costs.per_token(2) < least) {
    std::fill(in_cover_.begin(), in_cover_.end(), 0);
    count_room(part);
    index_holders(part);
  } else {
    left = 0;
  }
  while (left > 0) {
    const auto k = static_cast<int64_t>(cover_.size()) + 1;
    if (k > 1 && tokens * input_.costs.per_token(k) + too_much >= least) break;
    int next = -1;
    int64_t most = 0;
    for (int r = 0; r < input_.ranks; ++r) {
      const int64_t entries = in_cover_[r] ? 0 : std::min(present_[r], room_[r]);
      if (entries > most) most = entries, next = r;
    }
    if (next < 0) {  // no rank has room for the work: the one that can end this soonest
      for (int r = 0; r < input_.ranks; ++r) {
        if (in_cover_[r] || present_[r] == 0) continue;
        if (next < 0 || overload(part, r, present_[r]) < overload(part, next, present_[next]))
          next = r;
      }
      if (next < 0) break;
      most = present_[next];
      too_much += overload(part, next, most);
    }
    in_cover_[next] = 1;
    cover_.push_back(next);
    taken_.push_back(most);
    left -= most;
    for (int64_t i = held_begin_[next]; most > 0; ++i) {
      const int32_t j = held_[i];
      if (found[j] != kNoRank) continue;
      found[j] = static_cast<uint16_t>(k - 1);
      for_each_holder(part, j, [&](int rank) { --present_[rank]; });
      --most;
    }

    const double so_far = tokens * input_.costs.per_token(k) + too_much;
    const double with_copies = so_far + copy * static_cast<double>(left);
    if (left == 0 && so_far < least) least = so_far, best_cover = cover_.size(), better = true;
    for (std::size_t i = 0; i < cover_.size() && k > 1 && left > 0 && with_copies < least; ++i) {
      if (!fits(cover_[i], left)) continue;
      const double cost = with_copies + overload(part, cover_[i], taken_[i] + left);
      if (cost >= least) continue;
      least = cost, best_cover = cover_.size(), best_rank = cover_[i], better = true;
    }
  }
  if (!must_move && !better) return;
  if (best_cover == 0 && best_rank >= 0) return place_whole(part, best_rank);
  for (std::size_t j = 0; j < experts.size(); ++j) {
    uint16_t& rank = new_rank_[j];
    if (rank < best_cover || (best_rank < 0 && rank != kNoRank)) {
      rank = static_cast<uint16_t>(cover_[rank]);
    } else {  // a copy; or, if no rank has room for copies or for the work, the owner
      rank = static_cast<uint16_t>(best_rank >= 0 ? best_rank : holders_.home(experts[j]));
    }
  }
  place_as(part, new_rank_);
}

}  // namespace airmoe::scheduler::placement
