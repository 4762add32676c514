#pragma once
// f and f' of experts/reference.hpp in fp32. Device code only.

#include "experts/expert_table.hpp"

namespace airmoe::experts::cuda {

struct ValueAndSlope {
  float value, slope;
};

/// swiglu's f is silu. gelu is the exact x * Phi(x); relu'(0) = 0.
template <ExpertActivation kActivation>
__device__ __forceinline__ ValueAndSlope activation(float x) {
  if constexpr (kActivation == ExpertActivation::gelu) {
    const float cdf = normcdff(x);
    const float density = 0.3989422804014327f * expf(-0.5f * x * x);
    return {x * cdf, fmaf(x, density, cdf)};
  } else if constexpr (kActivation == ExpertActivation::relu) {
    return {fmaxf(x, 0.0f), x > 0 ? 1.0f : 0.0f};
  } else {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    return {x * sigmoid, sigmoid * fmaf(x, 1.0f - sigmoid, 1.0f)};
  }
}

}  // namespace airmoe::experts::cuda
