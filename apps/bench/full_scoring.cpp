#include "apps/bench/full_scoring.hpp"

#include <numeric>

#include "comm/base/vector_math.hpp"

namespace airmoe::bench {

FullScoring::FullScoring(ConstMatrix unit_centroids, const experts::ExpertTable& table,
                         int64_t active)
    : unit_centroids_(unit_centroids), table_(table), active_(active) {}

void FullScoring::forward(ConstMatrix hidden, Matrix y, Way way) {
  const int64_t n = hidden.rows;
  router::exact_top(hidden, unit_centroids_, 0, active_, top_, exact_, false);
  gate_.ensure(n * active_);
  offset_.ensure(n + 1);
  for (int64_t t = 0; t < n; ++t) {
    offset_[t] = t * active_;
    const float* score = top_.score.data() + t * top_.stride;  // descending
    float* gate = gate_.data() + t * active_;
    vector_exp(score, score[0], gate, active_);
    double sum = 0.0;
    for (int64_t k = 0; k < active_; ++k) sum += static_cast<double>(gate[k]);
    for (int64_t k = 0; k < active_; ++k) gate[k] = static_cast<float>(gate[k] / sum);
  }
  offset_[n] = n * active_;
  sum_.ensure(n * y.cols);
  sum_.fill(0.0);
  if (way == Way::by_expert) {
    by_expert(hidden);
  } else {
    by_token(hidden);
  }
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t k = 0; k < y.cols; ++k) y(t, k) = static_cast<float>(sum_[t * y.cols + k]);
  }
}

void FullScoring::by_expert(ConstMatrix hidden) {
  const SelectionView selection{hidden.rows, offset_.data(), top_.expert.data(), gate_.data()};
  grouping_.build(selection, unit_centroids_.rows);
  experts::forward_grouped(table_, grouping_, hidden, selection, nullptr,
                           {sum_.data(), hidden.rows, hidden.cols}, grouped_);
}

void FullScoring::by_token(ConstMatrix hidden) {
  in_order_.ensure(active_);
  std::iota(in_order_.begin(), in_order_.end(), 0);
  const int64_t offset[] = {0, active_};
  for (int64_t t = 0; t < hidden.rows; ++t) {
    const experts::DenseBlock block{hidden.slice_rows(t, 1),
                                    top_.expert.data() + t * active_,
                                    active_,
                                    {1, offset, in_order_.data(), gate_.data() + t * active_}};
    experts::forward_dense(table_, block, nullptr, {sum_.data() + t * hidden.cols, 1, hidden.cols},
                           dense_);
  }
}

}  // namespace airmoe::bench
