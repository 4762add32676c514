#include "scheduler/trunk/block.hpp"

#include <algorithm>

#include "comm/base/error.hpp"
#include "scheduler/trunk/layer_norm.hpp"
#include "scheduler/trunk/rms_norm.hpp"
#include "scheduler/trunk/src/init.hpp"

namespace airmoe::scheduler {
namespace {

std::string layer_path(int64_t layer) {
  return fmt::format("/layers/{:02}", layer);
}

Parameter& add_constant(ParameterSet& parameters, const std::string& name, int64_t size,
                        float value) {
  Parameter& p = parameters.add_replicated(name, {size}, false);
  p.value.fill(value);
  return p;
}

void add_to(Matrix x, ConstMatrix branch) {
  for (int64_t t = 0; t < x.rows; ++t) {
    float* __restrict to = x.row(t);
    const float* __restrict from = branch.row(t);
    for (int64_t i = 0; i < x.cols; ++i) to[i] += from[i];
  }
}

}  // namespace

int64_t BlockScratch::bytes() const {
  return normed.capacity_bytes() + branch.capacity_bytes() + d_normed.capacity_bytes() +
         moe_out.capacity_bytes() + d_moe.capacity_bytes() + attention.bytes() +
         ffn.hidden.capacity_bytes() + ffn.slope.capacity_bytes() + ffn.d_hidden.capacity_bytes();
}

Block::Block(const ModelConfig& config, int64_t layer, ParameterSet& parameters, uint64_t seed,
             MoeSlot* slot)
    : context_(config.context),
      dim_(config.dim),
      epsilon_(config.norm_epsilon),
      attention_norm_(
          add_constant(parameters, layer_path(layer) + "/attention_norm", config.dim, 1.0f)),
      attention_(config, layer_path(layer) + "/attention", parameters, seed),
      ffn_norm_(add_constant(parameters, layer_path(layer) + "/ffn_norm", config.dim, 1.0f)),
      slot_(slot) {
  const std::string path = layer_path(layer);
  if (slot_ == nullptr) {
    ffn_ = std::make_unique<SwigluFfn>(config, path + "/ffn", parameters, seed);
  } else {
    moe_gain_ = &add_constant(parameters, path + "/moe_norm/gain", dim_, kMoeNormGainInit);
    moe_bias_ = &add_constant(parameters, path + "/moe_norm/bias", dim_, 0.0f);
  }
}

void Block::forward(int64_t sequences, const RopeTable& rope, Matrix x, BlockScratch& scratch) {
  for (Buffer<float>* kept : {&input_, &middle_}) kept->ensure(x.rows * dim_);
  for (Buffer<float>* kept : {&input_inverse_, &middle_inverse_}) kept->ensure(x.rows);
  for (Buffer<float>* one : {&scratch.normed, &scratch.branch}) one->ensure(context_ * dim_);
  attention_.reserve(sequences);
  std::copy_n(x.data, x.rows * dim_, input_.data());
  const Matrix normed(scratch.normed.data(), context_, dim_);
  const Matrix branch(scratch.branch.data(), context_, dim_);
  for (int64_t s = 0; s < sequences; ++s) {
    const Matrix x_s = x.slice_rows(s * context_, context_);
    rms_norm_forward(x_s, attention_norm_.value.data(), epsilon_, normed,
                     input_inverse_.data() + s * context_);
    attention_.forward(s, rope, normed, branch, scratch.attention);
    add_to(x_s, branch);
  }
  std::copy_n(x.data, x.rows * dim_, middle_.data());
  if (slot_ == nullptr) {
    forward_dense(sequences, x, scratch);
  } else {
    forward_moe(x, scratch);
  }
}

void Block::forward_dense(int64_t sequences, Matrix x, BlockScratch& scratch) {
  ffn_->reserve(sequences);
  const Matrix normed(scratch.normed.data(), context_, dim_);
  const Matrix branch(scratch.branch.data(), context_, dim_);
  for (int64_t s = 0; s < sequences; ++s) {
    const Matrix x_s = x.slice_rows(s * context_, context_);
    rms_norm_forward(x_s, ffn_norm_.value.data(), epsilon_, normed,
                     middle_inverse_.data() + s * context_);
    ffn_->forward(s, normed, branch, scratch.ffn);
    add_to(x_s, branch);
  }
}

void Block::forward_moe(Matrix x, BlockScratch& scratch) {
  for (Buffer<float>* all : {&moe_hidden_, &moe_unit_, &scratch.moe_out})
    all->ensure(x.rows * dim_);
  moe_inverse_.ensure(x.rows);
  const Matrix hidden(moe_hidden_.data(), x.rows, dim_);
  const Matrix unit(moe_unit_.data(), x.rows, dim_);
  const Matrix out(scratch.moe_out.data(), x.rows, dim_);
  rms_norm_forward(x, ffn_norm_.value.data(), epsilon_, hidden, middle_inverse_.data());
  slot_->forward(hidden, unit);
  layer_norm_forward(unit, moe_gain_->value.data(), moe_bias_->value.data(), moe_inverse_.data(),
                     out);
  add_to(x, out);
}

void Block::backward(int64_t sequences, const RopeTable& rope, Matrix d_x, BlockScratch& scratch) {
  for (Buffer<float>* one : {&scratch.normed, &scratch.d_normed}) one->ensure(context_ * dim_);
  if (slot_ == nullptr) {
    backward_dense(sequences, d_x, scratch);
  } else {
    backward_moe(sequences, d_x, scratch);
  }
  const Matrix normed(scratch.normed.data(), context_, dim_);
  const Matrix d_normed(scratch.d_normed.data(), context_, dim_);
  for (int64_t s = 0; s < sequences; ++s) {
    const ConstMatrix x_s(input_.data() + s * context_ * dim_, context_, dim_);
    const float* inverse = input_inverse_.data() + s * context_;
    const Matrix d_x_s = d_x.slice_rows(s * context_, context_);
    rms_norm_recompute(x_s, attention_norm_.value.data(), inverse, normed);
    attention_.backward(s, rope, normed, d_x_s, d_normed, scratch.attention);
    rms_norm_backward(d_normed, x_s, attention_norm_.value.data(), inverse, d_x_s,
                      attention_norm_.gradient.data());
    attention_.fold_gradients();
    attention_norm_.fold_gradient();
  }
}

void Block::backward_dense(int64_t sequences, Matrix d_x, BlockScratch& scratch) {
  const Matrix normed(scratch.normed.data(), context_, dim_);
  const Matrix d_normed(scratch.d_normed.data(), context_, dim_);
  for (int64_t s = 0; s < sequences; ++s) {
    const ConstMatrix x_s(middle_.data() + s * context_ * dim_, context_, dim_);
    const float* inverse = middle_inverse_.data() + s * context_;
    const Matrix d_x_s = d_x.slice_rows(s * context_, context_);
    rms_norm_recompute(x_s, ffn_norm_.value.data(), inverse, normed);
    ffn_->backward(s, normed, d_x_s, d_normed, scratch.ffn);
    rms_norm_backward(d_normed, x_s, ffn_norm_.value.data(), inverse, d_x_s,
                      ffn_norm_.gradient.data());
    ffn_->fold_gradients();
    ffn_norm_.fold_gradient();
  }
}

void Block::backward_moe(int64_t sequences, Matrix d_x, BlockScratch& scratch) {
  for (Buffer<float>* all : {&scratch.moe_out, &scratch.d_moe}) all->ensure(d_x.rows * dim_);
  const Matrix d_out(scratch.moe_out.data(), d_x.rows, dim_);
  const Matrix d_hidden(scratch.d_moe.data(), d_x.rows, dim_);
  const ConstMatrix unit(moe_unit_.data(), d_x.rows, dim_);
  const ConstMatrix middle(middle_.data(), d_x.rows, dim_);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t first = s * context_;
    layer_norm_backward(d_x.slice_rows(first, context_), unit.slice_rows(first, context_),
                        moe_gain_->value.data(), moe_inverse_.data() + first,
                        d_out.slice_rows(first, context_), moe_gain_->gradient.data(),
                        moe_bias_->gradient.data());
    moe_gain_->fold_gradient();
    moe_bias_->fold_gradient();
  }
  slot_->backward(d_out, d_hidden);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t first = s * context_;
    rms_norm_backward(d_hidden.slice_rows(first, context_), middle.slice_rows(first, context_),
                      ffn_norm_.value.data(), middle_inverse_.data() + first,
                      d_x.slice_rows(first, context_), ffn_norm_.gradient.data());
    ffn_norm_.fold_gradient();
  }
}

int64_t Block::activation_bytes() const {
  int64_t bytes = attention_.activation_bytes() + (ffn_ ? ffn_->activation_bytes() : 0);
  for (const Buffer<float>* kept : {&input_, &middle_, &input_inverse_, &middle_inverse_,
                                    &moe_hidden_, &moe_unit_, &moe_inverse_}) {
    bytes += kept->capacity_bytes();
  }
  return bytes;
}

}  // namespace airmoe::scheduler
