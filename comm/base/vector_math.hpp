#pragma once
// Elementwise functions over contiguous arrays, vectorised; a few ulp from the double-precision value.
// The result of an element does not depend on its position or on the length of the array.

#include <cstdint>

namespace airmoe {

/// out[i] = exp(x[i] - shift). In place allowed. Relative error below 4e-7 where not subnormal.
void vector_exp(const float* x, float shift, float* out, int64_t count);

enum class Activation : uint8_t { gelu, silu, relu };

/// out[i] = f(x[i]). gelu is the exact form x * Phi(x) with erf. In place allowed.
void activation_forward(Activation f, const float* x, float* out, int64_t count);
/// Also its derivative: value[i] = f(x[i]), slope[i] = f'(x[i]).
void activation_with_slope(Activation f, const float* x, float* value, float* slope, int64_t count);

}  // namespace airmoe
