#include "comm/base/pair_grouping.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"

namespace airmoe {

void PairGrouping::build(SelectionView selection, int64_t positions) {
  constexpr int32_t kUntouched = -1;
  if (positions > map_size_) {
    slot_.ensure(positions);
    slot_.fill(kUntouched);
    map_size_ = positions;
  }
  first_pair_ = selection.tokens > 0 ? selection.offset[0] : 0;
  const int64_t pairs = selection.tokens > 0 ? selection.offset[selection.tokens] - first_pair_ : 0;
  const int32_t* position = selection.position + first_pair_;

  touched_.ensure(std::min(pairs, positions));
  groups_ = 0;
  for (int64_t p = 0; p < pairs; ++p) {
    AIRMOE_ASSERT(position[p] >= 0 && position[p] < positions);
    int32_t& slot = slot_[position[p]];
    if (slot == kUntouched) {
      slot = 0;
      touched_[groups_++] = position[p];
    }
  }
  if (groups_ * 8 > positions) {  // most positions: reading the map is faster than sorting
    groups_ = 0;
    for (int32_t i = 0; i < positions; ++i) {
      if (slot_[i] != kUntouched) touched_[groups_++] = i;
    }
  } else {
    std::sort(touched_.data(), touched_.data() + groups_);
  }

  // Counting sort: count, prefix sum, place; group_begin_[g + 1] is the write position of group g
  // while placing, and so its end afterwards.
  group_begin_.ensure(groups_ + 2);
  group_begin_.fill(0);
  for (int64_t g = 0; g < groups_; ++g) slot_[touched_[g]] = static_cast<int32_t>(g);
  for (int64_t p = 0; p < pairs; ++p) ++group_begin_[slot_[position[p]] + 2];
  largest_ = *std::max_element(group_begin_.begin(), group_begin_.end());
  std::partial_sum(group_begin_.begin(), group_begin_.end(), group_begin_.begin());
  pair_.ensure(pairs);
  token_.ensure(pairs);
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      const int64_t place = group_begin_[slot_[selection.position[p]] + 1]++;
      pair_[place] = p;
      token_[place] = static_cast<int32_t>(t);
    }
  }
  for (int64_t g = 0; g < groups_; ++g) slot_[touched_[g]] = kUntouched;
}

}  // namespace airmoe
