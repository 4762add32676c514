#include <algorithm>

#include "comm/base/error.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router {

void merge_top(std::span<const TopSlice> slices, std::span<int32_t> expert,
               std::span<int32_t> taken) {
  AIRMOE_CHECK(taken.size() == slices.size(), "merge_top: {} slices, {} counts", slices.size(),
               taken.size());
  std::fill(taken.begin(), taken.end(), 0);
  // A heap of slices, the one with the best next entry on top.
  thread_local Buffer<int32_t> heap;
  heap.ensure(static_cast<int64_t>(slices.size()));
  int32_t* begin = heap.data();
  int32_t* end = begin;
  for (std::size_t r = 0; r < slices.size(); ++r) {
    if (!slices[r].score.empty()) *end++ = static_cast<int32_t>(r);
  }
  const auto worse = [&](int32_t a, int32_t b) {
    const std::size_t i = static_cast<std::size_t>(taken[a]),
                      j = static_cast<std::size_t>(taken[b]);
    const float score_a = slices[a].score[i], score_b = slices[b].score[j];
    return score_a < score_b || (!(score_b < score_a) && slices[a].expert[i] > slices[b].expert[j]);
  };
  std::make_heap(begin, end, worse);
  for (int32_t& next : expert) {
    AIRMOE_CHECK(begin != end, "merge_top: fewer entries than the {} asked for", expert.size());
    std::pop_heap(begin, end, worse);
    const int32_t r = end[-1];
    next = slices[r].expert[static_cast<std::size_t>(taken[r])];
    ++taken[r];
    if (static_cast<std::size_t>(taken[r]) == slices[r].score.size()) {
      --end;
    } else {
      std::push_heap(begin, end, worse);
    }
  }
}

}  // namespace airmoe::router
