#pragma once
// RMSNorm with the residual addition before it, and the LayerNorm behind the MoE sum, on a device.
// Specification: scheduler/trunk/{rms_norm,layer_norm}.hpp. The residual stream and its gradient
// are fp32; what matrix products read and write is T, float or __nv_bfloat16.
//
// Local, asynchronous, deterministic. Rows have no gaps; d is a multiple of 8 up to 8,192, else
// Error naming --dim; pointers are aligned to eight elements. n may be 0.

#include <cstdint>

#include "scheduler/cuda/column_sums.hpp"

namespace airmoe::scheduler::cuda {

/// x_out = x + branch; normed = x_out * inverse * gain, inverse = 1 / sqrt(mean(x_out^2) +
/// epsilon).
/// @param branch  nullptr: none; then x_out is not written. Shape: [n, d]
/// @param x_out   may be x. Shape: [n, d]
template <class T>
void rms_norm_forward(const float* x, const T* branch, const float* gain, float epsilon, int64_t n,
                      int64_t d, float* x_out, T* normed, float* inverse, cudaStream_t stream);

/// d_x = d_residual + gradient of the input; d_gain += gradient of the gain.
/// @param d_out       gradient of normed; G is T or float. Shape: [n, d]
/// @param x           what was normalised. Shape: [n, d]
/// @param d_residual  nullptr: zero; may be d_x. Shape: [n, d]
/// @param d_x_copy    d_x once more in T; nullptr: not wanted. Shape: [n, d]
template <class G, class T>
void rms_norm_backward(const G* d_out, const float* x, const float* gain, const float* inverse,
                       int64_t n, int64_t d, const float* d_residual, float* d_x, T* d_x_copy,
                       float* d_gain, ColumnSums& columns, cudaStream_t stream);

/// unit = (x - mean) * inverse; out = unit * gain + bias. A row of equal values gives unit 0 and
/// inverse 0.
template <class T>
void layer_norm_forward(const float* x, const float* gain, const float* bias, int64_t n, int64_t d,
                        T* unit, float* inverse, T* out, cudaStream_t stream);

/// d_x is overwritten; d_gain and d_bias are added to.
template <class T>
void layer_norm_backward(const float* d_out, const T* unit, const float* gain, const float* inverse,
                         int64_t n, int64_t d, T* d_x, float* d_gain, float* d_bias,
                         ColumnSums& columns, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
