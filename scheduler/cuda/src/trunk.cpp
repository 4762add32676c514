#include "scheduler/cuda/trunk.hpp"

#include <utility>

#include <cuda_bf16.h>

#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/src/trunk_block.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
DeviceTrunk<T>::DeviceTrunk(const ModelConfig& config, ParameterSet& host,
                            DeviceParameters<T>& parameters, std::vector<DeviceMoeSlot<T>*> slots)
    : shared_(std::make_unique<TrunkShared<T>>(config, host, parameters)) {
  AIRMOE_CHECK(static_cast<int64_t>(slots.size()) == config.layers, "{} slots for {} layers",
               slots.size(), config.layers);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    DeviceMoeSlot<T>* slot = slots[static_cast<std::size_t>(layer)];
    AIRMOE_CHECK((slot != nullptr) == config.is_moe_layer(layer),
                 "slot and configuration disagree about layer {}", layer);
    blocks_.push_back(std::make_unique<TrunkBlock<T>>(*shared_, layer, slot));
  }
}

template <class T>
DeviceTrunk<T>::~DeviceTrunk() = default;

template <class T>
void DeviceTrunk<T>::announce_gradients(std::vector<int64_t> layers, GradientsComplete complete) {
  announced_ = std::move(layers);
  complete_ = std::move(complete);
}

template <class T>
void DeviceTrunk<T>::forward(const int32_t* tokens, int64_t sequences, cudaStream_t stream) {
  TrunkShared<T>& s = *shared_;
  const int64_t n = sequences * s.config.context, d = s.config.dim;
  embedding_forward(tokens, s.embedding.value, n, s.config.vocab, d, s.embedded.data(), stream);
  ResidualStream<T> x{s.embedded.data(), nullptr};
  for (auto& block : blocks_) x = block->forward(sequences, x, stream);
  rms_norm_forward(x.x, x.branch, s.final_norm.value, s.config.norm_epsilon, n, d, s.last.data(),
                   s.last_normed.data(), s.last_inverse.data(), stream);
}

template <class T>
void DeviceTrunk<T>::forward_loss(const int32_t* tokens, const int32_t* targets, int64_t sequences,
                                  double* loss, cudaStream_t stream) {
  TrunkShared<T>& s = *shared_;
  const int64_t n = sequences * s.config.context;
  s.reserve(n, false);
  forward(tokens, sequences, stream);
  const CrossEntropyInput<T> input{
      n, s.config.dim, s.config.vocab, s.last_normed.data(), s.embedding.compute, targets};
  cross_entropy(s.gemm, input, loss, s.cross_entropy, stream);
}

template <class T>
void DeviceTrunk<T>::forward_backward(const int32_t* tokens, const int32_t* targets,
                                      int64_t sequences, float loss_scale, double* loss,
                                      cudaStream_t stream) {
  TrunkShared<T>& s = *shared_;
  const int64_t n = sequences * s.config.context, d = s.config.dim;
  s.reserve(n, true);
  // Gains of two norms a layer, gain and bias of a LayerNorm per slot, gain of the final norm.
  const int64_t sums = 2 * s.config.layers + 2 * std::ssize(s.config.moe_layers) + 1;
  s.columns.collect(sums, d);
  forward(tokens, sequences, stream);
  const CrossEntropyInput<T> input{
      n, d, s.config.vocab, s.last_normed.data(), s.embedding.compute, targets};
  T* d_normed = s.d_narrow.data();
  cross_entropy_backward(s.gemm, input, loss_scale, loss, d_normed, s.embedding.gradient,
                         s.cross_entropy, stream);
  rms_norm_backward(d_normed, s.last.data(), s.final_norm.value, s.last_inverse.data(), n, d,
                    nullptr, s.d_stream.data(), s.d_stream_copy_out(), s.final_norm.gradient,
                    s.columns, stream);
  std::size_t announcement = 0;
  for (int64_t layer = s.config.layers - 1; layer >= 0; --layer) {
    blocks_[static_cast<std::size_t>(layer)]->backward(sequences, stream);
    if (announcement == announced_.size() || announced_[announcement] != layer) continue;
    s.columns.flush(stream);
    s.columns.collect(sums, d);
    complete_(announcement++, stream);
  }
  embedding_backward(tokens, s.d_stream.data(), n, s.config.vocab, d, s.embedding.gradient, s.embed,
                     stream);
  s.columns.flush(stream);
}

template <class T>
const T* DeviceTrunk<T>::moe_hidden(int64_t layer) const {
  return blocks_.at(static_cast<std::size_t>(layer))->ffn_input();
}

template <class T>
int64_t DeviceTrunk<T>::activation_bytes() const {
  int64_t bytes = shared_->bytes();
  for (const auto& block : blocks_) bytes += block->bytes();
  return bytes;
}

template class DeviceTrunk<float>;
template class DeviceTrunk<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
