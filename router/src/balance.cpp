#include "router/balance.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::router {

ExpertUsage::ExpertUsage(int64_t local_experts)
    : count_(local_experts, 0),
      touched_(local_experts),
      gate_sum_(local_experts, 0.0),
      window_(local_experts, int64_t{0}) {}

void ExpertUsage::begin_micro_batch() {
  flush();
  for (int64_t i = 0; i < num_touched_; ++i) {
    count_[touched_[i]] = 0;
    gate_sum_[touched_[i]] = 0.0;
  }
  num_touched_ = 0;
  pairs_ = 0;
  flushed_ = false;
}

void ExpertUsage::add(const int32_t* expert, const float* gate, int64_t pairs) {
  AIRMOE_CHECK(!flushed_, "expert usage: pairs added after flush() and before a new micro-batch");
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t e = expert[i];
    AIRMOE_ASSERT(e >= 0 && e < count_.size());
    if (count_[e]++ == 0) touched_[num_touched_++] = e;
    gate_sum_[e] += gate[i];
  }
  pairs_ += pairs;
}

double ExpertUsage::count_gate_product() {
  std::sort(touched_.data(), touched_.data() + num_touched_);
  double sum = 0.0;
  for (int64_t i = 0; i < num_touched_; ++i) {
    const int32_t e = touched_[i];
    sum += static_cast<double>(count_[e]) * gate_sum_[e];
  }
  return sum;
}

void ExpertUsage::flush() {
  if (flushed_) return;
  for (int64_t i = 0; i < num_touched_; ++i) window_[touched_[i]] += count_[touched_[i]];
  flushed_ = true;
}

void ExpertUsage::begin_window() {
  window_.fill(0);
}

}  // namespace airmoe::router
