#include "router/running_top.hpp"

#include <algorithm>
#include <limits>

#include "comm/base/error.hpp"
#include "router/src/top_k_kernels.hpp"

namespace airmoe::router {
namespace {
constexpr float kBottom = -std::numeric_limits<float>::infinity();
constexpr int64_t kSlack = 16;  // compress() stores whole vectors
}  // namespace

void RunningTop::reset(int64_t rows, int64_t keep, int64_t block) {
  AIRMOE_CHECK(keep >= 1 && block >= 1, "running top: keep {}, block {}", keep, block);
  keep_ = keep;
  capacity_ = keep + std::max(keep, block) + block + kSlack;
  threshold_.ensure(rows);
  threshold_.fill(kBottom);
  count_.ensure(rows);
  count_.fill(0);
  score_.ensure(rows * capacity_);
  id_.ensure(rows * capacity_);
  sort_.ensure(2 * capacity_);
}

void RunningTop::cut(int64_t row) {
  if (count_[row] <= keep_) return;
  float* score = score_.data() + row * capacity_;
  int32_t* id = id_.data() + row * capacity_;
  const detail::KthLargest kth = detail::kth_largest(score, count_[row], keep_);
  int64_t ties = keep_ - kth.above;
  count_[row] =
      detail::compress({score, id, 0, count_[row]}, kth.threshold, ties, score, id, capacity_);
  threshold_[row] = kth.threshold;
}

void RunningTop::append(int64_t row, const float* score, const int32_t* id, int32_t first_id,
                        int64_t count) {
  if (count_[row] + count + kSlack > capacity_) cut(row);
  // Entries equal to the threshold come too late: they lose their ties by id. A threshold of minus
  // infinity keeps everything, even when it is the true one.
  int64_t ties = threshold_[row] == kBottom ? count : 0;
  const int64_t at = row * capacity_ + count_[row];
  count_[row] += detail::compress({score, id, first_id, count}, threshold_[row], ties,
                                  score_.data() + at, id_.data() + at, capacity_ - count_[row]);
}

void RunningTop::offer(int64_t row, const float* score, int32_t first_id, int64_t count) {
  append(row, score, nullptr, first_id, count);
}

void RunningTop::offer(int64_t row, const float* score, const int32_t* id, int64_t count) {
  append(row, score, id, 0, count);
}

int64_t RunningTop::finish(int64_t row, float* score, int32_t* id) {
  cut(row);
  const int64_t count = count_[row];
  float* row_score = score_.data() + row * capacity_;
  int32_t* row_id = id_.data() + row * capacity_;
  detail::sort_top(row_score, row_id, count, sort_.data());
  std::copy_n(row_score, count, score);
  std::copy_n(row_id, count, id);
  return count;
}

}  // namespace airmoe::router
