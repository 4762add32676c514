#include "comm/base/pair_grouping.hpp"

#include <algorithm>
#include <limits>

#include "comm/base/error.hpp"

namespace airmoe {

void PairGrouping::build(SelectionView selection, int64_t positions) {
  if (positions > map_size_) {
    next_.ensure(positions);
    next_.fill(0);
    map_size_ = positions;
  }
  first_pair_ = selection.tokens > 0 ? selection.offset[0] : 0;
  const int64_t pairs = selection.tokens > 0 ? selection.offset[selection.tokens] - first_pair_ : 0;
  AIRMOE_CHECK(pairs <= std::numeric_limits<int32_t>::max(), "{} pairs are too many", pairs);
  const int32_t* position = selection.position + first_pair_;

  // Counting sort: next_ counts the pairs of a position, then says where its next one goes.
  touched_.ensure(std::min(pairs, positions));
  groups_ = 0;
  for (int64_t p = 0; p < pairs; ++p) {
    AIRMOE_ASSERT(position[p] >= 0 && position[p] < positions);
    if (next_[position[p]]++ == 0) touched_[groups_++] = position[p];
  }
  if (groups_ * 8 > positions) {  // most positions: reading the map is faster than sorting
    groups_ = 0;
    for (int32_t i = 0; i < positions; ++i) {
      if (next_[i] > 0) touched_[groups_++] = i;
    }
  } else {
    std::sort(touched_.data(), touched_.data() + groups_);
  }
  group_begin_.ensure(groups_ + 1);
  group_begin_[0] = 0;
  largest_ = 0;
  for (int64_t g = 0; g < groups_; ++g) {
    int32_t& next = next_[touched_[g]];
    largest_ = std::max<int64_t>(largest_, next);
    group_begin_[g + 1] = group_begin_[g] + next;
    next = static_cast<int32_t>(group_begin_[g]);
  }
  pair_.ensure(pairs);
  token_.ensure(pairs);
  int32_t p = 0;
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (const auto end = static_cast<int32_t>(selection.offset[t + 1] - first_pair_); p < end;
         ++p) {
      const int32_t place = next_[position[p]]++;
      pair_[place] = p;
      token_[place] = static_cast<int32_t>(t);
    }
  }
  for (int64_t g = 0; g < groups_; ++g) next_[touched_[g]] = 0;
}

}  // namespace airmoe
