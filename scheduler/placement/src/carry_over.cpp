#include "scheduler/placement/carry_over.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

int64_t CarryOver::operator()(std::span<const int32_t> old_list, std::span<const uint16_t> old_rank,
                              std::span<const int32_t> new_list, std::span<const int32_t> home,
                              int primary, int ranks, std::span<uint16_t> new_rank) {
  AIRMOE_CHECK(std::ssize(home) == rank_of_expert_.size() && old_list.size() == old_rank.size() &&
                   new_list.size() == new_rank.size() && primary >= 0 && primary < ranks,
               "carry_over: {} homes for {} experts, lists of {} and {}, primary {} of {} ranks",
               home.size(), rank_of_expert_.size(), old_list.size(), new_list.size(), primary,
               ranks);
  // Entries at the same place need no look-up.
  const std::size_t both = std::min(old_list.size(), new_list.size());
  const auto stayed = [&](std::size_t j) { return j < both && old_list[j] == new_list[j]; };
  for (std::size_t j = 0; j < old_list.size(); ++j) {
    if (!stayed(j)) rank_of_expert_[old_list[j]] = old_rank[j];
  }

  in_cover_.ensure(ranks);
  in_cover_.fill(0);
  in_cover_[primary] = 1;
  for (std::size_t j = 0; j < new_list.size(); ++j) {
    new_rank[j] = stayed(j) ? old_rank[j] : rank_of_expert_[new_list[j]];
    if (new_rank[j] != kNone) in_cover_[new_rank[j]] = 1;
  }
  int64_t fresh = 0;
  for (std::size_t j = 0; j < new_list.size(); ++j) {
    if (new_rank[j] != kNone) continue;
    const int owner = home[static_cast<std::size_t>(new_list[j])];
    new_rank[j] = static_cast<uint16_t>(in_cover_[owner] ? owner : primary);
    ++fresh;
  }
  for (std::size_t j = 0; j < old_list.size(); ++j) {
    if (!stayed(j)) rank_of_expert_[old_list[j]] = kNone;
  }
  return fresh;
}

}  // namespace airmoe::scheduler
