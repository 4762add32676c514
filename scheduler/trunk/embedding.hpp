#pragma once
// Token embedding: a row of the table per token.

#include <cstdint>
#include <span>

#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// out row t = table row tokens[t]. Throws Error naming the token when it is outside the table.
void embedding_forward(std::span<const int32_t> tokens, ConstMatrix table, Matrix out);
/// d_table row tokens[t] += d_out row t, tokens in order.
void embedding_backward(std::span<const int32_t> tokens, ConstMatrix d_out, Matrix d_table);

}  // namespace airmoe::scheduler
