#pragma once
// Activations and gradients over compact arrays of pairs, shared by both execution paths.

#include <algorithm>

#include "comm/base/vector_math.hpp"
#include "experts/expert_table.hpp"
#include "experts/pair_buffers.hpp"

namespace airmoe::experts {

/// Views of PairBuffers for `count` pairs: pair i has its m hidden units at [i * stride, i * stride
/// + m). inner and slope_inner are null unless the experts are swiglu; the last three are null in a
/// forward.
struct PairArrays {
  int64_t count = 0, m = 1, stride = 1;
  float *linear = nullptr, *inner = nullptr, *unit = nullptr;
  float *slope_linear = nullptr, *slope_inner = nullptr, *d_unit = nullptr;
};

enum class Pass : uint8_t { forward, backward };

inline bool is_gated(const ExpertTable& table) {
  return table.activation == ExpertActivation::swiglu;
}

inline PairArrays make_pair_arrays(const ExpertTable& table, int64_t count, int64_t stride,
                                   Pass pass, PairBuffers& buffers) {
  const auto grow = [&](Buffer<float>& buffer) {
    buffer.ensure(count * stride);
    return buffer.data();
  };
  PairArrays arrays{.count = count, .m = table.expert_dim, .stride = stride};
  arrays.linear = grow(buffers.linear);
  arrays.unit = grow(buffers.unit);
  if (is_gated(table)) arrays.inner = grow(buffers.inner);
  if (pass == Pass::forward) return arrays;
  arrays.slope_linear = grow(buffers.slope_linear);
  arrays.d_unit = grow(buffers.d_unit);
  if (is_gated(table)) arrays.slope_inner = grow(buffers.slope_inner);
  return arrays;
}

/// The function that bends: silu for swiglu.
inline Activation bend_of(ExpertActivation activation) {
  switch (activation) {
    case ExpertActivation::gelu:
      return Activation::gelu;
    case ExpertActivation::relu:
      return Activation::relu;
    case ExpertActivation::silu:
    case ExpertActivation::swiglu:
      return Activation::silu;
  }
  return Activation::gelu;
}

/// unit from linear and inner.
inline void hidden_units(ExpertActivation activation, const PairArrays& pairs) {
  const int64_t total = pairs.count * pairs.stride;
  const bool gated = pairs.inner != nullptr;
  activation_forward(bend_of(activation), gated ? pairs.inner : pairs.linear, pairs.unit, total);
  if (!gated) return;
  for (int64_t i = 0; i < total; ++i) pairs.unit[i] *= pairs.linear[i];
}

/// unit, slope_linear and slope_inner from linear and inner.
inline void hidden_units_with_slope(ExpertActivation activation, const PairArrays& pairs) {
  const int64_t total = pairs.count * pairs.stride;
  const Activation f = bend_of(activation);
  if (pairs.inner == nullptr) {
    activation_with_slope(f, pairs.linear, pairs.unit, pairs.slope_linear, total);
    return;
  }
  activation_with_slope(f, pairs.inner, pairs.slope_linear, pairs.slope_inner, total);
  for (int64_t i = 0; i < total; ++i) {
    pairs.unit[i] = pairs.slope_linear[i] * pairs.linear[i];
    pairs.slope_inner[i] *= pairs.linear[i];
  }
}

/// Saved layout of a pair: m of linear, then m of inner when there is one.
/// @param index_of  index_of(i) = the selection index of pair i
template <class IndexOf>
void save_pre_activations(const PairArrays& pairs, IndexOf index_of, float* saved) {
  const int64_t size = pairs.inner == nullptr ? pairs.m : 2 * pairs.m;
  if (size == 1) {  // a call to copy per number would cost more than the activation
    for (int64_t i = 0; i < pairs.count; ++i) saved[index_of(i)] = pairs.linear[i];
    return;
  }
  for (int64_t i = 0; i < pairs.count; ++i) {
    float* out = saved + index_of(i) * size;
    std::copy_n(pairs.linear + i * pairs.stride, pairs.m, out);
    if (pairs.inner != nullptr) std::copy_n(pairs.inner + i * pairs.stride, pairs.m, out + pairs.m);
  }
}

template <class IndexOf>
void load_pre_activations(const float* saved, IndexOf index_of, const PairArrays& pairs) {
  const int64_t size = pairs.inner == nullptr ? pairs.m : 2 * pairs.m;
  if (size == 1) {
    for (int64_t i = 0; i < pairs.count; ++i) pairs.linear[i] = saved[index_of(i)];
    return;
  }
  for (int64_t i = 0; i < pairs.count; ++i) {
    const float* in = saved + index_of(i) * size;
    std::copy_n(in, pairs.m, pairs.linear + i * pairs.stride);
    if (pairs.inner != nullptr) std::copy_n(in + pairs.m, pairs.m, pairs.inner + i * pairs.stride);
  }
}

/// unit *= gate of its pair.
template <class IndexOf>
void multiply_gates(const PairArrays& pairs, IndexOf index_of, const float* gate) {
  if (pairs.stride == 1) {
    for (int64_t i = 0; i < pairs.count; ++i) pairs.unit[i] *= gate[index_of(i)];
    return;
  }
  for (int64_t i = 0; i < pairs.count; ++i) {
    const float g = gate[index_of(i)];
    for (int64_t j = 0; j < pairs.m; ++j) pairs.unit[i * pairs.stride + j] *= g;
  }
}

/// d_gate = sum_j unit_j d_unit_j; then unit becomes gate * unit, slope_linear and slope_inner
/// become the gradients of linear and inner.
template <class IndexOf>
void pair_gradients(const PairArrays& pairs, IndexOf index_of, const float* gate, float* d_gate) {
  for (int64_t i = 0; i < pairs.count; ++i) {
    const int64_t index = index_of(i), first = i * pairs.stride;
    const float g = gate[index];
    float sum = 0;
    for (int64_t k = first; k < first + pairs.m; ++k) {
      sum += pairs.unit[k] * pairs.d_unit[k];
      pairs.unit[k] *= g;
      pairs.slope_linear[k] *= g * pairs.d_unit[k];
    }
    if (pairs.slope_inner != nullptr) {
      for (int64_t k = first; k < first + pairs.m; ++k) pairs.slope_inner[k] *= g * pairs.d_unit[k];
    }
    d_gate[index] = sum;
  }
}

}  // namespace airmoe::experts
