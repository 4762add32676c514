#pragma once
// Blocks of a group's tokens that have at least one selected pair.

#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::scheduler {

/// Calls visit(count): tokens block_token_[0..count) of the group, block_offset_[0..count] their
/// pairs. The tokens between two visited ones have no pairs, so the offsets are contiguous. Blocks
/// are cut at fixed places of the group, so gradients of an expert add up alike for any rank count.
template <class Visit>
void MoeLayer::for_each_active_block(const TokenGroup& group, Visit&& visit) {
  block_token_.ensure(kBlockTokens);
  block_offset_.ensure(kBlockTokens + 1);
  int64_t count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    block_offset_[count] = pair_offset_[block_token_[count - 1] + 1];
    visit(count);
    count = 0;
  };
  for (int64_t t = group.token_begin; t < group.token_begin + group.count; ++t) {
    if ((t - group.token_begin) % kBlockTokens == 0) flush();
    if (pair_offset_[t] == pair_offset_[t + 1]) continue;
    block_token_[count] = t;
    block_offset_[count] = pair_offset_[t];
    ++count;
  }
  flush();
}

}  // namespace airmoe::scheduler
