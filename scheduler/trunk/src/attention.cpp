#include "scheduler/trunk/attention.hpp"

#include "scheduler/trunk/linear.hpp"
#include "scheduler/trunk/src/init.hpp"

namespace airmoe::scheduler {
namespace {

/// Rows of sequence s.
Matrix sequence(Buffer<float>& buffer, int64_t s, int64_t context, int64_t cols) {
  return {buffer.data() + s * context * cols, context, cols};
}

}  // namespace

int64_t AttentionScratch::bytes() const {
  return d_query.capacity_bytes() + d_key.capacity_bytes() + d_value.capacity_bytes() +
         d_mixed.capacity_bytes() + causal.scores.capacity_bytes() +
         causal.d_scores.capacity_bytes();
}

Attention::Attention(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters,
                     uint64_t seed)
    : shape_{config.context, config.heads, config.kv_heads, config.head_dim()},
      wq_(parameters.add_replicated(prefix + "/wq", {config.dim, config.dim}, true)),
      wk_(parameters.add_replicated(prefix + "/wk",
                                    {config.kv_heads * config.head_dim(), config.dim}, true)),
      wv_(parameters.add_replicated(prefix + "/wv",
                                    {config.kv_heads * config.head_dim(), config.dim}, true)),
      wo_(parameters.add_replicated(prefix + "/wo", {config.dim, config.dim}, true)) {
  initialise_normal(wq_, seed, kInitStddev);
  initialise_normal(wk_, seed, kInitStddev);
  initialise_normal(wv_, seed, kInitStddev);
  initialise_normal(wo_, seed, residual_init_stddev(config));
}

void Attention::reserve(int64_t sequences) {
  const int64_t n = sequences * shape_.context;
  query_.ensure(n * shape_.heads * shape_.head_dim);
  key_.ensure(n * shape_.kv_heads * shape_.head_dim);
  value_.ensure(n * shape_.kv_heads * shape_.head_dim);
  mixed_.ensure(n * shape_.heads * shape_.head_dim);
  log_sum_.ensure(n * shape_.heads);
}

void Attention::forward(int64_t s, const RopeTable& rope, ConstMatrix x, Matrix out,
                        AttentionScratch& scratch) {
  const int64_t context = shape_.context, width = shape_.heads * shape_.head_dim,
                kv_width = shape_.kv_heads * shape_.head_dim;
  const Matrix query = sequence(query_, s, context, width);
  const Matrix key = sequence(key_, s, context, kv_width);
  const Matrix value = sequence(value_, s, context, kv_width);
  const Matrix mixed = sequence(mixed_, s, context, width);
  linear_forward(x, wq_.values(), query);
  linear_forward(x, wk_.values(), key);
  linear_forward(x, wv_.values(), value);
  rope.rotate(query);
  rope.rotate(key);
  causal_attention_forward(shape_, query, key, value, mixed,
                           log_sum_.data() + s * shape_.heads * context, scratch.causal);
  linear_forward(mixed, wo_.values(), out);
}

void Attention::backward(int64_t s, const RopeTable& rope, ConstMatrix x, ConstMatrix d_out,
                         Matrix d_x, AttentionScratch& scratch) {
  const int64_t context = shape_.context, width = shape_.heads * shape_.head_dim,
                kv_width = shape_.kv_heads * shape_.head_dim;
  for (Buffer<float>* wide : {&scratch.d_query, &scratch.d_mixed}) wide->ensure(context * width);
  for (Buffer<float>* narrow : {&scratch.d_key, &scratch.d_value}) {
    narrow->ensure(context * kv_width);
  }
  const Matrix d_query(scratch.d_query.data(), context, width);
  const Matrix d_mixed(scratch.d_mixed.data(), context, width);
  const Matrix d_key(scratch.d_key.data(), context, kv_width);
  const Matrix d_value(scratch.d_value.data(), context, kv_width);
  const Matrix mixed = sequence(mixed_, s, context, width);

  linear_backward_weight(d_out, mixed, wo_.gradients());
  linear_backward_input(d_out, wo_.values(), 0.0f, d_mixed);
  causal_attention_backward(
      shape_, sequence(query_, s, context, width), sequence(key_, s, context, kv_width),
      sequence(value_, s, context, kv_width), mixed, log_sum_.data() + s * shape_.heads * context,
      d_mixed, d_query, d_key, d_value, scratch.causal);
  rope.rotate_back(d_query);
  rope.rotate_back(d_key);
  linear_backward_weight(d_query, x, wq_.gradients());
  linear_backward_weight(d_key, x, wk_.gradients());
  linear_backward_weight(d_value, x, wv_.gradients());
  linear_backward_input(d_query, wq_.values(), 0.0f, d_x);
  linear_backward_input(d_key, wk_.values(), 1.0f, d_x);
  linear_backward_input(d_value, wv_.values(), 1.0f, d_x);
}

int64_t Attention::activation_bytes() const {
  return query_.capacity_bytes() + key_.capacity_bytes() + value_.capacity_bytes() +
         mixed_.capacity_bytes() + log_sum_.capacity_bytes();
}

}  // namespace airmoe::scheduler
