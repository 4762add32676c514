#include "router/balance.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::router {

ExpertUsage::ExpertUsage(int64_t local_experts)
    : count_(local_experts, 0), gate_sum_(local_experts, 0.0), window_(local_experts, int64_t{0}) {}

void ExpertUsage::resize(int64_t rows) {
  const int64_t old = count_.size();
  if (rows > old) {
    Buffer<int32_t> count(rows, 0);
    Buffer<double> gate_sum(rows, 0.0);
    std::copy_n(count_.data(), old, count.data());
    std::copy_n(gate_sum_.data(), old, gate_sum.data());
    count_.swap(count);
    gate_sum_.swap(gate_sum);
  }
}

void ExpertUsage::begin_micro_batch() {
  flush();
  for (const int32_t e : touched_) {
    count_[e] = 0;
    gate_sum_[e] = 0.0;
  }
  touched_.clear();
  pairs_ = 0;
  flushed_ = false;
}

void ExpertUsage::add(const int32_t* expert, const float* gate, int64_t pairs) {
  AIRMOE_CHECK(!flushed_, "expert usage: pairs added after flush() and before a new micro-batch");
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t e = expert[i];
    AIRMOE_ASSERT(e >= 0 && e < count_.size());
    if (count_[e]++ == 0) touched_.push_back(e);
    gate_sum_[e] += gate[i];
  }
  pairs_ += pairs;
}

double ExpertUsage::count_gate_product() {
  std::sort(touched_.begin(), touched_.end());
  double sum = 0.0;
  for (const int32_t e : touched_) sum += static_cast<double>(count_[e]) * gate_sum_[e];
  return sum;
}

void ExpertUsage::flush() {
  if (flushed_) return;
  for (const int32_t e : touched_) {
    if (e < window_.size()) window_[e] += count_[e];
  }
  flushed_ = true;
}

void ExpertUsage::begin_window() {
  window_.fill(0);
}

}  // namespace airmoe::router
