#pragma once
// A MoeSlot that is not a mixture of experts: out = 2 tanh(A h) with a fixed random A, in double.
// It records what it saw and how often it was called.

#include <cmath>
#include <cstdint>
#include <vector>

#include "comm/base/random.hpp"
#include "scheduler/trunk/moe_slot.hpp"

namespace airmoe::scheduler {

class ToySlot : public MoeSlot {
 public:
  explicit ToySlot(int64_t dim) : dim_(dim), a_(static_cast<std::size_t>(dim * dim)) {
    RandomStream(5, Purpose::test_data).fill_normal(a_.data(), dim * dim, 0, 0.4f);
  }

  std::vector<double> apply(const std::vector<double>& h) const {
    std::vector<double> out(static_cast<std::size_t>(dim_));
    for (int64_t o = 0; o < dim_; ++o) {
      double z = 0.0;
      for (int64_t i = 0; i < dim_; ++i) z += static_cast<double>(a_[o * dim_ + i]) * h[i];
      out[o] = 2.0 * std::tanh(z);
    }
    return out;
  }

  void forward(ConstMatrix hidden, Matrix out) override {
    ++forwards;
    seen.assign(hidden.data, hidden.data + hidden.rows * hidden.cols);
    for (int64_t t = 0; t < hidden.rows; ++t) {
      const auto y = apply({hidden.row(t), hidden.row(t) + dim_});
      for (int64_t o = 0; o < dim_; ++o) out(t, o) = static_cast<float>(y[o]);
    }
  }

  void backward(ConstMatrix d_out, Matrix d_hidden) override {
    ++backwards;
    for (int64_t t = 0; t < d_out.rows; ++t) {
      const float* h = seen.data() + t * dim_;
      const auto y = apply({h, h + dim_});
      for (int64_t i = 0; i < dim_; ++i) {
        double sum = 0.0;
        for (int64_t o = 0; o < dim_; ++o) {
          const double slope = 2.0 - y[o] * y[o] / 2.0;
          sum += static_cast<double>(d_out(t, o)) * slope * static_cast<double>(a_[o * dim_ + i]);
        }
        d_hidden(t, i) = static_cast<float>(sum);
      }
    }
  }

  int forwards = 0, backwards = 0;
  std::vector<float> seen;  ///< hidden of the last forward

 private:
  int64_t dim_;
  std::vector<float> a_;
};

}  // namespace airmoe::scheduler
