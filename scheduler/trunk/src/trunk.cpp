#include "scheduler/trunk/trunk.hpp"

#include "comm/base/error.hpp"
#include "scheduler/trunk/embedding.hpp"
#include "scheduler/trunk/rms_norm.hpp"
#include "scheduler/trunk/src/init.hpp"

namespace airmoe::scheduler {

Trunk::Trunk(const ModelConfig& config, ParameterSet& parameters, uint64_t seed,
             std::vector<MoeSlot*> slots)
    : config_(config),
      embedding_(parameters.add_replicated("/embedding", {config.vocab, config.dim}, true)),
      rope_(config.context, config.head_dim(), config.rope_base) {
  AIRMOE_CHECK(static_cast<int64_t>(slots.size()) == config.layers, "{} slots for {} layers",
               slots.size(), config.layers);
  initialise_normal(embedding_, seed, kInitStddev);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    MoeSlot* slot = slots[static_cast<std::size_t>(layer)];
    AIRMOE_CHECK((slot != nullptr) == config.is_moe_layer(layer),
                 "slot and configuration disagree about layer {}", layer);
    blocks_.push_back(std::make_unique<Block>(config, layer, parameters, seed, slot));
  }
  final_norm_ = &parameters.add_replicated("/final_norm", {config.dim}, false);
  final_norm_->value.fill(1.0f);
}

double Trunk::forward_backward(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                               int64_t sequences, float loss_scale) {
  forward(tokens, targets, sequences);
  const double sum = loss(targets, sequences, loss_scale, true);
  const Matrix d_stream(d_stream_.data(), sequences * config_.context, config_.dim);
  for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
    (*block)->backward(sequences, rope_, d_stream, scratch_);
  }
  const auto context = static_cast<std::size_t>(config_.context);
  for (int64_t s = 0; s < sequences; ++s) {
    embedding_backward(tokens.subspan(static_cast<std::size_t>(s) * context, context),
                       d_stream.slice_rows(s * config_.context, config_.context),
                       embedding_.gradients());
    embedding_.fold_gradient();
  }
  return sum;
}

double Trunk::forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                           int64_t sequences) {
  forward(tokens, targets, sequences);
  return loss(targets, sequences, 0.0f, false);
}

void Trunk::forward(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                    int64_t sequences) {
  const int64_t n = sequences * config_.context;
  AIRMOE_CHECK(static_cast<int64_t>(tokens.size()) == n && tokens.size() == targets.size(),
               "{} tokens and {} targets for {} sequences of {}", tokens.size(), targets.size(),
               sequences, config_.context);
  stream_.ensure(n * config_.dim);
  const Matrix stream(stream_.data(), n, config_.dim);
  embedding_forward(tokens, embedding_.values(), stream);
  for (auto& block : blocks_) block->forward(sequences, rope_, stream, scratch_);
}

double Trunk::loss(std::span<const int32_t> targets, int64_t sequences, float loss_scale,
                   bool train) {
  const int64_t context = config_.context, dim = config_.dim;
  normed_.ensure(context * dim);
  inverse_.ensure(context);
  const Matrix normed(normed_.data(), context, dim);
  if (train) {
    d_normed_.ensure(context * dim);
    d_stream_.ensure(sequences * context * dim);
    d_stream_.fill(0.0f);
  }
  double sum = 0.0;
  for (int64_t s = 0; s < sequences; ++s) {
    const ConstMatrix x(stream_.data() + s * context * dim, context, dim);
    const auto targets_s =
        targets.subspan(static_cast<std::size_t>(s * context), static_cast<std::size_t>(context));
    const float* gain = final_norm_->value.data();
    rms_norm_forward(x, gain, config_.norm_epsilon, normed, inverse_.data());
    if (!train) {
      sum += cross_entropy(normed, embedding_.values(), targets_s, cross_entropy_scratch_);
      continue;
    }
    const Matrix d_normed(d_normed_.data(), context, dim);
    const Matrix d_x(d_stream_.data() + s * context * dim, context, dim);
    sum += cross_entropy_backward(normed, embedding_.values(), targets_s, loss_scale, d_normed,
                                  embedding_.gradients(), cross_entropy_scratch_);
    rms_norm_backward(d_normed, x, gain, inverse_.data(), d_x, final_norm_->gradient.data());
    embedding_.fold_gradient();
    final_norm_->fold_gradient();
  }
  return sum;
}

int64_t Trunk::activation_bytes() const {
  int64_t bytes = scratch_.bytes() + cross_entropy_scratch_.logits.capacity_bytes();
  for (const Buffer<float>* kept : {&stream_, &d_stream_, &normed_, &d_normed_, &inverse_}) {
    bytes += kept->capacity_bytes();
  }
  for (const auto& block : blocks_) bytes += block->activation_bytes();
  return bytes;
}

}  // namespace airmoe::scheduler
