#pragma once
// The dense feed-forward network: down(silu(gate(x)) * up(x)).

#include <cstdint>
#include <string>

#include "scheduler/model_config.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler {

struct SwigluScratch {
  Buffer<float> hidden, slope, d_hidden;  ///< one sequence. Shape: [context, f]
};

/// Works on one sequence at a time and keeps per-sequence activations by sequence index.
class SwigluFfn {
 public:
  /// Adds prefix/{gate [f, d], up [f, d], down [d, f]}.
  SwigluFfn(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters,
            uint64_t seed);

  /// Makes room for the activations of `sequences` sequences.
  void reserve(int64_t sequences);
  /// out = ffn(x) of sequence `s`. Shapes: [context, d]
  void forward(int64_t s, ConstMatrix x, Matrix out, SwigluScratch& scratch);
  /// d_x is overwritten; adds to the gradients of the weights. x: what forward saw.
  void backward(int64_t s, ConstMatrix x, ConstMatrix d_out, Matrix d_x, SwigluScratch& scratch);
  int64_t activation_bytes() const;

  /// Ends one sequence for its parameters; see Parameter::fold_gradient.
  void fold_gradients() {
    for (Parameter* p : {&gate_, &up_, &down_}) p->fold_gradient();
  }

 private:
  int64_t context_, ffn_dim_;
  Parameter &gate_, &up_, &down_;
  Buffer<float> gate_out_, up_out_;  ///< before the activation. Shape: [n, f]
};

}  // namespace airmoe::scheduler
