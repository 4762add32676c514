#pragma once
// The language model around the MoE layers: a Llama-3 style decoder (paper, "Model") in fp32 on
// CPU. Token embedding, blocks of grouped-query attention and SwiGLU FFN or MoE slot, final
// RMSNorm, logits with the tied embedding, cross-entropy.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "scheduler/model_config.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/trunk/block.hpp"
#include "scheduler/trunk/cross_entropy.hpp"
#include "scheduler/trunk/moe_slot.hpp"

namespace airmoe::scheduler {

/// Every matrix product of the trunk works on one sequence (config.context rows), so the numbers of
/// a token are the same bits however sequences are spread over ranks and calls. Gradients of
/// parameters add up sequence by sequence in fp32.
class Trunk {
 public:
  /// Adds the replicated parameters /embedding [V, d], /layers/ii/..., /final_norm [d] to
  /// `parameters` and initialises them from `seed`. Local. References to `parameters`' elements and
  /// to the slots are kept.
  /// @param slots  one per layer; nullptr for a layer with a dense FFN. Must agree with
  ///               config.is_moe_layer(); throws Error otherwise.
  Trunk(const ModelConfig& config, ParameterSet& parameters, uint64_t seed,
        std::vector<MoeSlot*> slots);

  /// Sum over the local tokens of -log p(target), in nats, accumulated in double. Adds the gradient
  /// of loss_scale * that sum to the gradients of the parameters (it does not set them to zero
  /// first). Collective through the slots: forward in layer order, backward in reverse, also when
  /// sequences == 0. It does not reduce anything over ranks itself.
  /// @param tokens, targets  Shape: [sequences * context], each in [0, vocab)
  double forward_backward(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                          int64_t sequences, float loss_scale);

  /// The same sum without gradients; calls only forward of the slots. Collective through the slots.
  double forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                      int64_t sequences);

  /// Memory held for activations and scratch; grows to that of the largest call.
  int64_t activation_bytes() const;

 private:
  /// Leaves the input of the final norm in stream_.
  void forward(std::span<const int32_t> tokens, std::span<const int32_t> targets,
               int64_t sequences);
  /// Final norm and loss of every sequence; with train, also their gradient into d_stream_.
  double loss(std::span<const int32_t> targets, int64_t sequences, float loss_scale, bool train);

  ModelConfig config_;
  Parameter& embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;
  Parameter* final_norm_ = nullptr;
  RopeTable rope_;
  BlockScratch scratch_;
  CrossEntropyScratch cross_entropy_scratch_;
  Buffer<float> stream_, d_stream_;            ///< Shape: [n, d]
  Buffer<float> normed_, d_normed_, inverse_;  ///< one sequence of the final norm
};

}  // namespace airmoe::scheduler
