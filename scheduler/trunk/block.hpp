#pragma once
// One decoder layer: x += attention(rms_norm(x)); x += ffn(rms_norm(x)), where ffn is a dense
// SwiGLU or layer_norm(moe_slot(...)).

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/model_config.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/trunk/attention.hpp"
#include "scheduler/trunk/moe_slot.hpp"
#include "scheduler/trunk/swiglu_ffn.hpp"

namespace airmoe::scheduler {

/// Scratch that all blocks share: nothing in it outlives a call.
struct BlockScratch {
  Buffer<float> normed, branch, d_normed;  ///< one sequence. Shape: [context, d]
  Buffer<float> moe_out, d_moe;            ///< all local tokens. Shape: [n, d]
  AttentionScratch attention;
  SwigluScratch ffn;
  int64_t bytes() const;
};

class Block {
 public:
  /// Adds /layers/ii/{attention_norm, attention/..., ffn_norm} and ffn/... or moe_norm/{gain,
  /// bias}.
  /// @param slot  nullptr for a dense FFN
  Block(const ModelConfig& config, int64_t layer, ParameterSet& parameters, uint64_t seed,
        MoeSlot* slot);

  /// Updates x in place and keeps what the backward needs. Collective when it has a slot.
  /// @param x  Shape: [sequences * context, d]
  void forward(int64_t sequences, const RopeTable& rope, Matrix x, BlockScratch& scratch);
  /// d_x: gradient of the block's output on entry, of its input on return. Adds to the gradients of
  /// the parameters. Collective when it has a slot.
  void backward(int64_t sequences, const RopeTable& rope, Matrix d_x, BlockScratch& scratch);

  /// Bytes of kept activations.
  int64_t activation_bytes() const;

 private:
  void forward_dense(int64_t sequences, Matrix x, BlockScratch& scratch);
  void backward_dense(int64_t sequences, Matrix d_x, BlockScratch& scratch);
  void forward_moe(Matrix x, BlockScratch& scratch);
  void backward_moe(int64_t sequences, Matrix d_x, BlockScratch& scratch);

  int64_t context_, dim_;
  float epsilon_;
  Parameter& attention_norm_;
  Attention attention_;
  Parameter& ffn_norm_;
  std::unique_ptr<SwigluFfn> ffn_;
  MoeSlot* slot_;
  Parameter* moe_gain_ = nullptr;
  Parameter* moe_bias_ = nullptr;

  Buffer<float> input_, middle_;  ///< x before attention, before the FFN. Shape: [n, d]
  Buffer<float> input_inverse_, middle_inverse_;  ///< of their RMS. Shape: [n]
  Buffer<float> moe_hidden_;                      ///< what the slot saw. Shape: [n, d]
  Buffer<float> moe_unit_;                        ///< slot output, normalised. Shape: [n, d]
  Buffer<float> moe_inverse_;                     ///< of its standard deviation. Shape: [n]
};

}  // namespace airmoe::scheduler
