#pragma once
// Cross-entropy of logits = hidden * embedding^T, forward and backward in one pass over chunks of
// rows: the logits of more than one chunk never exist.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

struct CrossEntropyScratch {
  Buffer<float> logits;  ///< Shape: [chunk, V], at most 16 MiB or 16 rows, whichever is more
};

/// Sum over rows of -log softmax(logits)[target], in nats.
/// @param hidden     Shape: [n, d]
/// @param embedding  Shape: [V, d]
/// @param targets    Shape: [n], each in [0, V); throws Error naming another value
double cross_entropy(ConstMatrix hidden, ConstMatrix embedding, std::span<const int32_t> targets,
                     CrossEntropyScratch& scratch);
/// Also the gradient of loss_scale * that sum: d_hidden is overwritten, d_embedding is added to.
double cross_entropy_backward(ConstMatrix hidden, ConstMatrix embedding,
                              std::span<const int32_t> targets, float loss_scale, Matrix d_hidden,
                              Matrix d_embedding, CrossEntropyScratch& scratch);

}  // namespace airmoe::scheduler
