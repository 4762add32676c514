#include "scheduler/trunk/rope.hpp"

#include <cmath>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

RopeTable::RopeTable(int64_t context, int64_t head_dim, float base)
    : context_(context),
      head_dim_(head_dim),
      cosine_(context * head_dim),
      sine_(context * head_dim) {
  AIRMOE_CHECK(head_dim % 2 == 0, "RoPE turns pairs, but head_dim is {}", head_dim);
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double exponent = -static_cast<double>(i) / static_cast<double>(head_dim);
    const double frequency = std::pow(static_cast<double>(base), exponent);
    for (int64_t t = 0; t < context; ++t) {
      const double angle = static_cast<double>(t) * frequency;
      const int64_t at = t * head_dim + i;
      // Laid out so that the turn is x[i] * cosine[i] + x[i ^ 1] * sine[i].
      cosine_[at] = cosine_[at + 1] = static_cast<float>(std::cos(angle));
      sine_[at + 1] = static_cast<float>(std::sin(angle));
      sine_[at] = -sine_[at + 1];
    }
  }
}

void RopeTable::turn(Matrix x, float direction) const {
  AIRMOE_CHECK(x.rows == context_ && x.cols % head_dim_ == 0, "[{}, {}] is not [{}, heads * {}]",
               x.rows, x.cols, context_, head_dim_);
  for (int64_t t = 0; t < context_; ++t) {
    const float* __restrict cosine = cosine_.data() + t * head_dim_;
    const float* __restrict sine = sine_.data() + t * head_dim_;
    for (int64_t begin = 0; begin < x.cols; begin += head_dim_) {
      float* __restrict head = x.row(t) + begin;
      for (int64_t i = 0; i < head_dim_; i += 2) {
        const float even = head[i];
        const float odd = head[i + 1];
        head[i] = even * cosine[i] + odd * (sine[i] * direction);
        head[i + 1] = odd * cosine[i + 1] + even * (sine[i + 1] * direction);
      }
    }
  }
}

}  // namespace airmoe::scheduler
