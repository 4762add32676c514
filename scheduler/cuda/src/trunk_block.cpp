#include "scheduler/cuda/src/trunk_block.hpp"

#include <cuda_bf16.h>

#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/swiglu.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
TrunkBlock<T>::TrunkBlock(TrunkShared<T>& shared, int64_t layer, DeviceMoeSlot<T>* slot)
    : shared_(shared), slot_(slot), dim_(shared.config.dim), ffn_dim_(shared.config.ffn_dim) {
  const std::string path = fmt::format("/layers/{:02}", layer), attention = path + "/attention";
  attention_norm_ = shared.weight(path + "/attention_norm");
  qkv_weight_ = shared.stacked({attention + "/wq", attention + "/wk", attention + "/wv"});
  out_weight_ = shared.weight(attention + "/wo");
  ffn_norm_ = shared.weight(path + "/ffn_norm");
  if (slot == nullptr) {
    gate_up_weight_ = shared.stacked({path + "/ffn/gate", path + "/ffn/up"});
    down_weight_ = shared.weight(path + "/ffn/down");
  } else {
    moe_gain_ = shared.weight(path + "/moe_norm/gain");
    moe_bias_ = shared.weight(path + "/moe_norm/bias");
  }
}

template <class T>
void TrunkBlock<T>::reserve(int64_t tokens) {
  const int64_t size = tokens * dim_;
  middle_.ensure(size);
  for (auto* all : {&input_inverse_, &middle_inverse_}) all->ensure(tokens);
  for (auto* all : {&input_normed_, &middle_normed_, &mixed_}) all->ensure(size);
  qkv_.ensure(tokens * shared_.qkv_columns);
  log_sum_.ensure(tokens * shared_.config.heads);
  if (slot_ == nullptr) {
    gate_up_.ensure(tokens * 2 * ffn_dim_);
    hidden_.ensure(tokens * ffn_dim_);
  } else {
    moe_unit_.ensure(size);
    moe_inverse_.ensure(tokens);
  }
}

template <class T>
AttentionShape TrunkBlock<T>::attention_shape(int64_t sequences) const {
  const ModelConfig& c = shared_.config;
  return {sequences, c.context, c.heads, c.kv_heads, c.head_dim()};
}

template <class T>
ResidualStream<T> TrunkBlock<T>::forward(int64_t sequences, ResidualStream<T> in,
                                         cudaStream_t stream) {
  const ModelConfig& c = shared_.config;
  const int64_t n = sequences * c.context, d = dim_, ld = shared_.qkv_columns;
  const int64_t kv_columns = c.kv_heads * c.head_dim();
  reserve(n);
  T* branch = shared_.branch.data();

  if (in.branch != nullptr) input_.ensure(n * d);
  input_at_ = in.branch == nullptr ? in.x : input_.data();
  rms_norm_forward(in.x, in.branch, attention_norm_.value, c.norm_epsilon, n, d, input_.data(),
                   input_normed_.data(), input_inverse_.data(), stream);
  linear_forward(shared_.gemm, n, d, ld, input_normed_.data(), qkv_weight_.compute, qkv_.data(), ld,
                 stream);
  shared_.rope.rotate(qkv_.data(), n, d + kv_columns, ld, stream);
  if (n > 0) {
    const T* q = qkv_.data();
    causal_attention_forward(attention_shape(sequences), q, q + d, q + d + kv_columns, ld, ld, ld,
                             mixed_.data(), log_sum_.data(), shared_.attention, stream);
  }
  linear_forward(shared_.gemm, n, d, d, mixed_.data(), out_weight_.compute, branch, d, stream);

  rms_norm_forward(input_at_, branch, ffn_norm_.value, c.norm_epsilon, n, d, middle_.data(),
                   middle_normed_.data(), middle_inverse_.data(), stream);
  if (slot_ == nullptr) {
    linear_forward(shared_.gemm, n, d, 2 * ffn_dim_, middle_normed_.data(), gate_up_weight_.compute,
                   gate_up_.data(), 2 * ffn_dim_, stream);
    swiglu_forward(gate_up_.data(), n, ffn_dim_, hidden_.data(), stream);
    linear_forward(shared_.gemm, n, ffn_dim_, d, hidden_.data(), down_weight_.compute, branch, d,
                   stream);
  } else {
    slot_->forward(middle_normed_.data(), n, shared_.moe_out.data(), stream);
    layer_norm_forward(shared_.moe_out.data(), moe_gain_.value, moe_bias_.value, n, d,
                       moe_unit_.data(), moe_inverse_.data(), branch, stream);
  }
  return {middle_.data(), branch};
}

template <class T>
void TrunkBlock<T>::backward(int64_t sequences, cudaStream_t stream) {
  const ModelConfig& c = shared_.config;
  const int64_t n = sequences * c.context, d = dim_, ld = shared_.qkv_columns;
  const int64_t kv_columns = c.kv_heads * c.head_dim();
  if (slot_ == nullptr) {
    backward_dense(n, stream);
  } else {
    backward_moe(n, stream);
  }

  Gemm& gemm = shared_.gemm;
  float* d_stream = shared_.d_stream.data();
  const T* d_out = shared_.d_stream_compute();
  T* d_mixed = shared_.d_narrow.data();
  T* d_qkv = shared_.d_wide.data();
  linear_backward_input(gemm, n, d, d, d_out, d, out_weight_.compute, d_mixed, stream);
  linear_backward_weight(gemm, n, d, d, d_out, d, mixed_.data(), out_weight_.gradient, stream);
  if (n > 0) {
    const T* q = qkv_.data();
    causal_attention_backward(attention_shape(sequences), q, q + d, q + d + kv_columns, ld, ld, ld,
                              mixed_.data(), log_sum_.data(), d_mixed, d_qkv, d_qkv + d,
                              d_qkv + d + kv_columns, ld, ld, ld, shared_.attention, stream);
  }
  shared_.rope.rotate_back(d_qkv, n, d + kv_columns, ld, stream);
  linear_backward_weight(gemm, n, d, ld, d_qkv, ld, input_normed_.data(), qkv_weight_.gradient,
                         stream);
  T* d_normed = shared_.d_narrow.data();
  linear_backward_input(gemm, n, d, ld, d_qkv, ld, qkv_weight_.compute, d_normed, stream);
  rms_norm_backward(d_normed, input_at_, attention_norm_.value, input_inverse_.data(), n, d,
                    d_stream, d_stream, shared_.d_stream_copy_out(), attention_norm_.gradient,
                    shared_.columns, stream);
}

template <class T>
void TrunkBlock<T>::backward_dense(int64_t n, cudaStream_t stream) {
  Gemm& gemm = shared_.gemm;
  const int64_t d = dim_, f = ffn_dim_;
  float* d_stream = shared_.d_stream.data();
  const T* d_out = shared_.d_stream_compute();
  T* d_hidden = shared_.d_wide.data();
  T* d_normed = shared_.d_narrow.data();
  linear_backward_input(gemm, n, f, d, d_out, d, down_weight_.compute, d_hidden, stream);
  linear_backward_weight(gemm, n, f, d, d_out, d, hidden_.data(), down_weight_.gradient, stream);
  T* d_gate_up = gate_up_.data();
  swiglu_backward(gate_up_.data(), d_hidden, n, f, d_gate_up, stream);
  linear_backward_weight(gemm, n, d, 2 * f, d_gate_up, 2 * f, middle_normed_.data(),
                         gate_up_weight_.gradient, stream);
  linear_backward_input(gemm, n, d, 2 * f, d_gate_up, 2 * f, gate_up_weight_.compute, d_normed,
                        stream);
  rms_norm_backward(d_normed, middle_.data(), ffn_norm_.value, middle_inverse_.data(), n, d,
                    d_stream, d_stream, shared_.d_stream_copy_out(), ffn_norm_.gradient,
                    shared_.columns, stream);
}

template <class T>
void TrunkBlock<T>::backward_moe(int64_t n, cudaStream_t stream) {
  const int64_t d = dim_;
  float* d_stream = shared_.d_stream.data();
  T* d_out = shared_.d_narrow.data();
  float* d_hidden = shared_.moe_out.data();
  layer_norm_backward(d_stream, moe_unit_.data(), moe_gain_.value, moe_inverse_.data(), n, d, d_out,
                      moe_gain_.gradient, moe_bias_.gradient, shared_.columns, stream);
  slot_->backward(d_out, d_hidden, stream);
  rms_norm_backward(d_hidden, middle_.data(), ffn_norm_.value, middle_inverse_.data(), n, d,
                    d_stream, d_stream, shared_.d_stream_copy_out(), ffn_norm_.gradient,
                    shared_.columns, stream);
}

template <class T>
int64_t TrunkBlock<T>::bytes() const {
  int64_t bytes = 0;
  for (const auto* b :
       {&input_, &middle_, &input_inverse_, &middle_inverse_, &log_sum_, &moe_inverse_}) {
    bytes += b->capacity_bytes();
  }
  for (const auto* b :
       {&input_normed_, &middle_normed_, &qkv_, &mixed_, &gate_up_, &hidden_, &moe_unit_}) {
    bytes += b->capacity_bytes();
  }
  return bytes;
}

template class TrunkBlock<float>;
template class TrunkBlock<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
