#pragma once
// out = (x - mean) / sqrt(variance + kLayerNormEpsilon) * gain + bias, row by row. Stands after the
// sum over experts (paper, "Forward" 5).

#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// The sum over experts can be as small as 1e-3 at the start: a usual 1e-5 would swamp its
/// variance.
inline constexpr float kLayerNormEpsilon = 1e-12f;

/// Mean and variance in two passes. A row of equal values (to fp32 rounding) gives unit 0,
/// out = bias, inverse 0 and hence gradient zero.
/// @param[in,out] x     overwritten by unit = (x - mean) * inverse. Shape: [n, d]
/// @param[out] inverse  1 / sqrt(variance + epsilon). Shape: [n]
/// @param[out] out      unit * gain + bias. Shape: [n, d]
void layer_norm_forward(Matrix x, const float* gain, const float* bias, float* inverse, Matrix out);
/// d_x is overwritten; d_gain and d_bias are added to, rows in order.
void layer_norm_backward(ConstMatrix d_out, ConstMatrix unit, const float* gain,
                         const float* inverse, Matrix d_x, float* d_gain, float* d_bias);

}  // namespace airmoe::scheduler
