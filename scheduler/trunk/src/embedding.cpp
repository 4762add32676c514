#include "scheduler/trunk/embedding.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

void embedding_forward(std::span<const int32_t> tokens, ConstMatrix table, Matrix out) {
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    AIRMOE_CHECK(tokens[t] >= 0 && tokens[t] < table.rows, "token {} is not in [0, {})", tokens[t],
                 table.rows);
    std::copy_n(table.row(tokens[t]), table.cols, out.row(static_cast<int64_t>(t)));
  }
}

void embedding_backward(std::span<const int32_t> tokens, ConstMatrix d_out, Matrix d_table) {
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const float* __restrict from = d_out.row(static_cast<int64_t>(t));
    float* __restrict to = d_table.row(tokens[t]);
    for (int64_t i = 0; i < d_table.cols; ++i) to[i] += from[i];
  }
}

}  // namespace airmoe::scheduler
