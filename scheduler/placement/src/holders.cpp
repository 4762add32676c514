#include <algorithm>

#include "scheduler/placement/src/holders.hpp"

namespace airmoe::scheduler::placement {

Holders::Holders(std::span<const int32_t> uses, int ranks)
    : begin_(std::ssize(uses)),
      count_(std::ssize(uses), 0),
      rows_(static_cast<std::size_t>(ranks)) {
  int64_t end = 0;
  for (std::size_t e = 0; e < uses.size(); ++e) {
    begin_[e] = end;
    end += std::min(uses[e] + 1, ranks);
  }
  holder_.ensure(end);
}

void Holders::set_homes(std::span<const int32_t> home) {
  for (std::size_t e = 0; e < home.size(); ++e) {
    Holder* list = holder_.data() + begin_[e];
    uint16_t& count = count_[e];
    if (has_homes_ && list[0].uses == 0) {
      --rows_[list[0].rank];
      list[0] = list[--count];
    }
    Holder* at =
        std::find_if(list, list + count, [&](const Holder& h) { return h.rank == home[e]; });
    if (at == list + count) {
      *at = {static_cast<uint16_t>(home[e]), 0};
      ++count;
      ++rows_[home[e]];
    }
    std::swap(*list, *at);
  }
  has_homes_ = true;
}

}  // namespace airmoe::scheduler::placement
