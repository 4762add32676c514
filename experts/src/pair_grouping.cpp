#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"
#include "experts/grouped_path.hpp"

namespace airmoe::experts {

void PairGrouping::build(SelectionView selection, int64_t local_experts) {
  constexpr int32_t kUntouched = -1;
  if (local_experts > map_size_) {
    slot_of_expert_.ensure(local_experts);
    slot_of_expert_.fill(kUntouched);
    map_size_ = local_experts;
  }
  const int64_t first = selection.tokens > 0 ? selection.offset[0] : 0;
  const int64_t pairs = selection.tokens > 0 ? selection.offset[selection.tokens] - first : 0;
  const int32_t* expert = selection.position + first;

  touched_.ensure(std::min(pairs, local_experts));
  groups_ = 0;
  for (int64_t p = 0; p < pairs; ++p) {
    AIRMOE_ASSERT(expert[p] >= 0 && expert[p] < local_experts);
    int32_t& slot = slot_of_expert_[expert[p]];
    if (slot == kUntouched) {
      slot = 0;
      touched_[groups_++] = expert[p];
    }
  }
  std::sort(touched_.data(), touched_.data() + groups_);

  // Counting sort: count, prefix sum, place; group_begin_[g + 1] is the write position of group g
  // while placing, and so its end afterwards.
  group_begin_.ensure(groups_ + 2);
  group_begin_.fill(0);
  for (int64_t g = 0; g < groups_; ++g) slot_of_expert_[touched_[g]] = static_cast<int32_t>(g);
  for (int64_t p = 0; p < pairs; ++p) ++group_begin_[slot_of_expert_[expert[p]] + 2];
  largest_ = *std::max_element(group_begin_.begin(), group_begin_.end());
  std::partial_sum(group_begin_.begin(), group_begin_.end(), group_begin_.begin());
  pair_.ensure(pairs);
  token_.ensure(pairs);
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      const int64_t place = group_begin_[slot_of_expert_[selection.position[p]] + 1]++;
      pair_[place] = p;
      token_[place] = static_cast<int32_t>(t);
    }
  }
  for (int64_t g = 0; g < groups_; ++g) slot_of_expert_[touched_[g]] = kUntouched;
}

}  // namespace airmoe::experts
