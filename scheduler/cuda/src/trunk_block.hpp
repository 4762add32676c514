#pragma once
// One decoder layer on a device: x += attention(rms_norm(x)); x += ffn(rms_norm(x)).

#include <cstdint>
#include <string>
#include <type_traits>

#include "scheduler/cuda/attention.hpp"
#include "scheduler/cuda/column_sums.hpp"
#include "scheduler/cuda/cross_entropy.hpp"
#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/cuda/embedding.hpp"
#include "scheduler/cuda/gemm.hpp"
#include "scheduler/cuda/moe_slot.hpp"
#include "scheduler/cuda/rope.hpp"
#include "scheduler/model_config.hpp"

namespace airmoe::scheduler::cuda {

/// A parameter's places on the device.
template <class T>
struct Weight {
  const float* value = nullptr;
  const T* compute = nullptr;
  float* gradient = nullptr;
};

/// The residual stream between layers: x + branch, not yet added up.
template <class T>
struct ResidualStream {
  const float* x = nullptr;
  const T* branch = nullptr;  ///< nullptr: nothing to add
};

/// What all layers use; nothing in the buffers outlives a layer's call, but d_stream.
template <class T>
struct TrunkShared {
  TrunkShared(const ModelConfig& model, ParameterSet& host, DeviceParameters<T>& parameters);

  /// Throws Error for a name that the host trunk has not created.
  Weight<T> weight(const std::string& name);
  /// Several parameters, one behind the other without gaps, as one matrix.
  Weight<T> stacked(const std::vector<std::string>& names);

  void reserve(int64_t tokens, bool backward);
  int64_t bytes() const;
  /// The stream's gradient as matrix products read it.
  const T* d_stream_compute() const {
    if constexpr (std::is_same_v<T, float>) {
      return d_stream.data();
    } else {
      return d_stream_copy.data();
    }
  }
  /// Where a norm's backward leaves that copy.
  T* d_stream_copy_out() { return std::is_same_v<T, float> ? nullptr : d_stream_copy.data(); }

  ModelConfig config;
  ParameterSet& host;
  DeviceParameters<T>& parameters;
  int64_t qkv_columns;  ///< of q, k and v
  Weight<T> embedding, final_norm;

  Gemm gemm;
  DeviceRope rope;
  ColumnSums columns;
  AttentionWorkspace attention;
  CrossEntropyWorkspace<T> cross_entropy;
  EmbeddingWorkspace embed;

  DeviceBuffer<float> embedded;            ///< input of the first layer. Shape: [n, d]
  DeviceBuffer<float> last, last_inverse;  ///< input of the final norm. Shape: [n, d], [n]
  DeviceBuffer<T> last_normed;             ///< Shape: [n, d]
  DeviceBuffer<T> branch;                  ///< forward: what a layer adds. Shape: [n, d]
  DeviceBuffer<float> moe_out;             ///< of slots, and its d_hidden. Shape: [n, d]
  DeviceBuffer<T> d_narrow;                ///< gradients of [n, d]
  DeviceBuffer<T> d_wide;                  ///< gradients of [n, max(qkv_columns, f)]
  DeviceBuffer<float> d_stream;            ///< Shape: [n, d]
  DeviceBuffer<T> d_stream_copy;           ///< the same; not used for float
};

template <class T>
class TrunkBlock {
 public:
  /// @param slot  nullptr for a dense FFN
  TrunkBlock(TrunkShared<T>& shared, int64_t layer, DeviceMoeSlot<T>* slot);

  /// Keeps what the backward needs. Collective when it has a slot. `stream.x` stays as it is until
  /// the backward where it has no branch.
  ResidualStream<T> forward(int64_t sequences, ResidualStream<T> in, cudaStream_t stream);
  /// shared.d_stream: gradient of the block's output on entry, of its input on return. Adds to the
  /// gradients of the parameters. Collective when it has a slot.
  void backward(int64_t sequences, cudaStream_t stream);

  const T* ffn_input() const { return middle_normed_.data(); }
  int64_t bytes() const;

 private:
  void reserve(int64_t tokens);
  AttentionShape attention_shape(int64_t sequences) const;
  void backward_dense(int64_t n, cudaStream_t stream);
  void backward_moe(int64_t n, cudaStream_t stream);

  TrunkShared<T>& shared_;
  DeviceMoeSlot<T>* slot_;
  int64_t dim_, ffn_dim_;
  Weight<T> attention_norm_, qkv_weight_, out_weight_, ffn_norm_;
  Weight<T> gate_up_weight_, down_weight_;  // dense
  Weight<T> moe_gain_, moe_bias_;           // MoE

  const float* input_at_ = nullptr;     // x before attention: input_ or the embedding
  DeviceBuffer<float> input_, middle_;  // x before attention, before the FFN. [n, d]
  DeviceBuffer<float> input_inverse_, middle_inverse_;  // of their RMS. [n]
  DeviceBuffer<T> input_normed_, middle_normed_;  // what the projections and the FFN read. [n, d]
  DeviceBuffer<T> qkv_;                           // q, k (after RoPE) and v. [n, qkv_columns]
  DeviceBuffer<T> mixed_;                         // values mixed by attention. [n, d]
  DeviceBuffer<float> log_sum_;                   // [sequences, heads, context]
  DeviceBuffer<T> gate_up_;   // before the activation; in the backward its gradient. [n, 2 f]
  DeviceBuffer<T> hidden_;    // silu(gate) * up. [n, f]
  DeviceBuffer<T> moe_unit_;  // slot output, normalised. [n, d]
  DeviceBuffer<float> moe_inverse_;  // of its standard deviation. [n]
};

}  // namespace airmoe::scheduler::cuda
