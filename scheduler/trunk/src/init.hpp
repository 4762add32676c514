#pragma once
// Initial values of the trunk's parameters.

#include <cmath>

#include "scheduler/model_config.hpp"

namespace airmoe::scheduler {

/// Standard deviation of embedding and projection weights.
inline constexpr float kInitStddev = 0.02f;

/// Of the two projections that write to the residual stream: with 2 * layers such branches the
/// stream's variance stays of the order of one branch's.
inline float residual_init_stddev(const ModelConfig& config) {
  return kInitStddev / std::sqrt(2.0f * static_cast<float>(config.layers));
}

/// Gain of the LayerNorm after the MoE sum. Its input has unit variance while the residual stream
/// starts at kInitStddev and grows towards 1 in training: a gain of 1 would drown the token's own
/// embedding, a gain of kInitStddev would leave the experts without a say. In between.
inline constexpr float kMoeNormGainInit = 0.1f;

}  // namespace airmoe::scheduler
