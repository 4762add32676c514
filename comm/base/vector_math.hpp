#pragma once
// Elementwise functions over contiguous arrays, vectorised; a few ulp from the double-precision
// value. The result of an element does not depend on its position or on the length of the array.
// NaN gives NaN; all functions are local and count may be zero.

#include <cstdint>

namespace airmoe {

/// out[i] = exp(x[i] - shift). In place allowed. Relative error below 2e-7 where the result is not
/// subnormal; 0 below -104, infinity above 88.72.
void vector_exp(const float* x, float shift, float* out, int64_t count);

enum class Activation : uint8_t { gelu, silu, relu };

/// out[i] = f(x[i]). gelu is the exact form x * Phi(x) with erf. In place allowed.
/// Relative error below 6e-7, for gelu also at negative x.
void activation_forward(Activation f, const float* x, float* out, int64_t count);
/// Also its derivative: value[i] = f(x[i]), slope[i] = f'(x[i]). Slope: absolute error below 3e-7;
/// that of relu at 0 is 0.
void activation_with_slope(Activation f, const float* x, float* value, float* slope, int64_t count);

}  // namespace airmoe
