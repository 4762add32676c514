#include "scheduler/trunk/layer_norm.hpp"

#include <cmath>
#include <limits>

#include "scheduler/trunk/src/row_math.hpp"

namespace airmoe::scheduler {
namespace {

/// 0 when the row differs from its mean by no more than what rounding the mean to fp32 leaves.
float inverse_deviation(double variance, double mean) {
  const double noise = 4.0 * static_cast<double>(std::numeric_limits<float>::epsilon()) * mean;
  if (variance <= noise * noise) return 0.0f;
  return static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(kLayerNormEpsilon)));
}

}  // namespace

void layer_norm_forward(Matrix x, const float* gain, const float* bias, float* inverse,
                        Matrix out) {
  const int64_t d = x.cols;
  const double count = static_cast<double>(d);
  for (int64_t t = 0; t < x.rows; ++t) {
    float* __restrict unit = x.row(t);
    float* __restrict to = out.row(t);
    const float mean = static_cast<float>(row_math::sum(unit, d) / count);
    for (int64_t i = 0; i < d; ++i) unit[i] -= mean;
    const double variance = row_math::sum_of_squares(unit, d) / count;
    const float scale = inverse_deviation(variance, static_cast<double>(mean));
    inverse[t] = scale;
    for (int64_t i = 0; i < d; ++i) {
      unit[i] *= scale;
      to[i] = unit[i] * gain[i] + bias[i];
    }
  }
}

void layer_norm_backward(ConstMatrix d_out, ConstMatrix unit, const float* gain,
                         const float* inverse, Matrix d_x, float* d_gain, float* d_bias) {
  const int64_t d = unit.cols;
  const double count = static_cast<double>(d);
  for (int64_t t = 0; t < unit.rows; ++t) {
    const float* __restrict g = d_out.row(t);
    const float* __restrict u = unit.row(t);
    float* __restrict to = d_x.row(t);
    float* __restrict to_gain = d_gain;
    float* __restrict to_bias = d_bias;
    for (int64_t i = 0; i < d; ++i) {
      to_gain[i] += g[i] * u[i];
      to_bias[i] += g[i];
    }
    const float mean =
        static_cast<float>(row_math::sum_of(d, [=](int64_t i) { return g[i] * gain[i]; }) / count);
    const float slope = static_cast<float>(
        row_math::sum_of(d, [=](int64_t i) { return g[i] * gain[i] * u[i]; }) / count);
    const float scale = inverse[t];
    for (int64_t i = 0; i < d; ++i) to[i] = (g[i] * gain[i] - mean - u[i] * slope) * scale;
  }
}

}  // namespace airmoe::scheduler
