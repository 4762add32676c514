#include "scheduler/trunk/swiglu_ffn.hpp"

#include "comm/base/vector_math.hpp"
#include "scheduler/trunk/linear.hpp"
#include "scheduler/trunk/src/init.hpp"

namespace airmoe::scheduler {

SwigluFfn::SwigluFfn(const ModelConfig& config, const std::string& prefix, ParameterSet& parameters,
                     uint64_t seed)
    : context_(config.context),
      ffn_dim_(config.ffn_dim),
      gate_(parameters.add_replicated(prefix + "/gate", {config.ffn_dim, config.dim}, true)),
      up_(parameters.add_replicated(prefix + "/up", {config.ffn_dim, config.dim}, true)),
      down_(parameters.add_replicated(prefix + "/down", {config.dim, config.ffn_dim}, true)) {
  initialise_normal(gate_, seed, kInitStddev);
  initialise_normal(up_, seed, kInitStddev);
  initialise_normal(down_, seed, residual_init_stddev(config));
}

void SwigluFfn::reserve(int64_t sequences) {
  gate_out_.ensure(sequences * context_ * ffn_dim_);
  up_out_.ensure(sequences * context_ * ffn_dim_);
}

void SwigluFfn::forward(int64_t s, ConstMatrix x, Matrix out, SwigluScratch& scratch) {
  const int64_t size = context_ * ffn_dim_;
  const Matrix gate(gate_out_.data() + s * size, context_, ffn_dim_);
  const Matrix up(up_out_.data() + s * size, context_, ffn_dim_);
  scratch.hidden.ensure(size);
  linear_forward(x, gate_.values(), gate);
  linear_forward(x, up_.values(), up);
  float* __restrict hidden = scratch.hidden.data();
  activation_forward(Activation::silu, gate.data, hidden, size);
  const float* __restrict factor = up.data;
  for (int64_t i = 0; i < size; ++i) hidden[i] *= factor[i];
  linear_forward(ConstMatrix(hidden, context_, ffn_dim_), down_.values(), out);
}

void SwigluFfn::backward(int64_t s, ConstMatrix x, ConstMatrix d_out, Matrix d_x,
                         SwigluScratch& scratch) {
  const int64_t size = context_ * ffn_dim_;
  scratch.hidden.ensure(size);
  scratch.slope.ensure(size);
  scratch.d_hidden.ensure(size);
  const Matrix hidden(scratch.hidden.data(), context_, ffn_dim_);
  const Matrix d_gate(scratch.slope.data(), context_, ffn_dim_);
  const Matrix d_up(scratch.d_hidden.data(), context_, ffn_dim_);
  activation_with_slope(Activation::silu, gate_out_.data() + s * size, hidden.data, d_gate.data,
                        size);
  linear_backward_input(d_out, down_.values(), 0.0f, d_up);

  // hidden: silu(gate) -> silu(gate) * up.  d_gate: slope -> d_hidden * up * slope.
  // d_up: d_hidden -> d_hidden * silu(gate).
  const float* __restrict up = up_out_.data() + s * size;
  float* __restrict h = hidden.data;
  float* __restrict dg = d_gate.data;
  float* __restrict du = d_up.data;
  for (int64_t i = 0; i < size; ++i) {
    const float silu = h[i];
    const float d_hidden = du[i];
    h[i] = silu * up[i];
    dg[i] *= d_hidden * up[i];
    du[i] = d_hidden * silu;
  }
  linear_backward_weight(d_out, hidden, down_.gradients());
  linear_backward_weight(d_gate, x, gate_.gradients());
  linear_backward_weight(d_up, x, up_.gradients());
  linear_backward_input(d_gate, gate_.values(), 0.0f, d_x);
  linear_backward_input(d_up, up_.values(), 1.0f, d_x);
}

int64_t SwigluFfn::activation_bytes() const {
  return gate_out_.capacity_bytes() + up_out_.capacity_bytes();
}

}  // namespace airmoe::scheduler
