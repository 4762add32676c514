#include "scheduler/placement/src/holders.hpp"

#include <algorithm>
#include <utility>

namespace airmoe::scheduler::placement {

Holders::Holders(std::span<const int32_t> uses, int ranks)
    : row_(std::ssize(uses)), rows_(static_cast<std::size_t>(ranks)) {
  int64_t end = 0;
  for (std::size_t e = 0; e < uses.size(); ++e) {
    row_[e] = {.begin = end, .count = 0};
    end += std::min(uses[e] + 1, ranks);
  }
  holder_.ensure(end);
}

void Holders::set_homes(std::span<const int32_t> home) {
  for (std::size_t e = 0; e < home.size(); ++e) {
    if (has_homes_ && holder_[row_[e].begin].rank == home[e]) continue;
    Row& row = row_[e];
    Holder* list = holder_.data() + row.begin;
    if (has_homes_ && list[0].uses == 0) {
      --rows_[list[0].rank];
      list[0] = list[--row.count];
    }
    Holder* const at =
        std::find_if(list, list + row.count, [&](const Holder& h) { return h.rank == home[e]; });
    if (at == list + row.count) {
      *at = {static_cast<uint16_t>(home[e]), 0};
      ++row.count;
      ++rows_[home[e]];
    }
    std::swap(*list, *at);
  }
  has_homes_ = true;
}

void Holders::use_all(std::span<const int32_t> experts, std::span<const int64_t> begin) {
  constexpr int64_t kAhead = 16;  // experts, for prefetching
  // One rank at a time: its counts stay in the cache, and every holder is written once.
  Buffer<uint16_t> uses(row_.size(), 0);
  std::vector<int32_t> used;
  for (std::size_t rank = 0; rank + 1 < begin.size(); ++rank) {
    used.clear();
    for (int64_t i = begin[rank]; i < begin[rank + 1]; ++i) {
      if (uses[experts[i]]++ == 0) used.push_back(experts[i]);
    }
    for (int64_t i = 0; i < std::ssize(used); ++i) {
      prefetch(used[std::min(i + kAhead, std::ssize(used) - 1)]);
      Row& row = row_[used[i]];
      Holder* list = holder_.data() + row.begin;
      const uint16_t count = std::exchange(uses[used[i]], uint16_t{0});
      if (has_homes_ && list[0].rank == rank) {
        list[0].uses = count;
      } else {
        list[row.count++] = {static_cast<uint16_t>(rank), count};
        ++rows_[rank];
      }
    }
  }
}

}  // namespace airmoe::scheduler::placement
