#pragma once
// out = x / sqrt(mean(x^2) + epsilon) * gain, row by row.

#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// @param gain          Shape: [d]
/// @param[out] inverse  1 / sqrt(mean(x^2) + epsilon) of each row. Shape: [n]
void rms_norm_forward(ConstMatrix x, const float* gain, float epsilon, Matrix out, float* inverse);
/// The same output again from the kept `inverse`: bit-identical to the forward's.
void rms_norm_recompute(ConstMatrix x, const float* gain, const float* inverse, Matrix out);
/// d_x += gradient of the input; d_gain += gradient of the gain, rows in order.
void rms_norm_backward(ConstMatrix d_out, ConstMatrix x, const float* gain, const float* inverse,
                       Matrix d_x, float* d_gain);

}  // namespace airmoe::scheduler
