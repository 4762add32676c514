#pragma once
// Grouped-query self-attention of one layer: projections, RoPE, causal attention, output
// projection.

#include <cstdint>
#include <string>

#include "scheduler/model_config.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/trunk/causal_attention.hpp"
#include "scheduler/trunk/rope.hpp"

namespace airmoe::scheduler {

struct AttentionScratch {
  Buffer<float> d_query, d_key, d_value, d_mixed;  ///< one sequence
  CausalAttentionScratch causal;
  int64_t bytes() const;
};

/// Works on one sequence at a time and keeps per-sequence activations by sequence index.
class Attention {
 public:
  /// Adds prefix/{wq [heads*hd, d], wk [kv*hd, d], wv [kv*hd, d], wo [d, heads*hd]}.
  Attention(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters,
            uint64_t seed);

  /// Makes room for the activations of `sequences` sequences.
  void reserve(int64_t sequences);
  /// out = attention(x) of sequence `s`. Shapes: [context, d]
  void forward(int64_t s, const RopeTable& rope, ConstMatrix x, Matrix out,
               AttentionScratch& scratch);
  /// d_x is overwritten; adds to the gradients of the weights. x: what forward saw.
  void backward(int64_t s, const RopeTable& rope, ConstMatrix x, ConstMatrix d_out, Matrix d_x,
                AttentionScratch& scratch);
  int64_t activation_bytes() const;

  /// Ends one sequence for its parameters; see Parameter::fold_gradient.
  void fold_gradients() {
    for (Parameter* p : {&wq_, &wk_, &wv_, &wo_}) p->fold_gradient();
  }

 private:
  CausalAttentionShape shape_;
  Parameter &wq_, &wk_, &wv_, &wo_;
  Buffer<float> query_, key_, value_;  ///< after RoPE. Shape: [n, heads*hd], [n, kv*hd], [n, kv*hd]
  Buffer<float> mixed_;    ///< values mixed by attention, before wo. Shape: [n, heads*hd]
  Buffer<float> log_sum_;  ///< log of the softmax normaliser. Shape: [sequences, heads, context]
};

}  // namespace airmoe::scheduler
