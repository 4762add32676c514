#pragma once
// softmax(scale * Q K^T, causal) V of one sequence, by blocks of query rows against the keys up to
// the block's end. Probabilities live for one block only; the backward recomputes them.

#include <cstdint>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// heads is a multiple of kv_heads; query head h reads key/value head h / (heads / kv_heads).
struct CausalAttentionShape {
  int64_t context = 0, heads = 0, kv_heads = 0, head_dim = 0;
};

struct CausalAttentionScratch {
  Buffer<float> scores, d_scores;  ///< Shape: [query block, context]
};

/// @param query          Shape: [context, heads * head_dim], head-major columns
/// @param key, value     Shape: [context, kv_heads * head_dim]
/// @param[out] out       Shape: [context, heads * head_dim]
/// @param[out] log_sum   log of each row's softmax normaliser. Shape: [heads, context]
void causal_attention_forward(const CausalAttentionShape& shape, ConstMatrix query, ConstMatrix key,
                              ConstMatrix value, Matrix out, float* log_sum,
                              CausalAttentionScratch& scratch);

/// Gradients overwrite d_query, d_key and d_value. out, log_sum: results of the forward.
void causal_attention_backward(const CausalAttentionShape& shape, ConstMatrix query,
                               ConstMatrix key, ConstMatrix value, ConstMatrix out,
                               const float* log_sum, ConstMatrix d_out, Matrix d_query,
                               Matrix d_key, Matrix d_value, CausalAttentionScratch& scratch);

}  // namespace airmoe::scheduler
