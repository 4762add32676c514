#include "scheduler/trunk/rms_norm.hpp"

#include <cmath>

#include "scheduler/trunk/src/row_math.hpp"

namespace airmoe::scheduler {

void rms_norm_forward(ConstMatrix x, const float* gain, float epsilon, Matrix out, float* inverse) {
  for (int64_t t = 0; t < x.rows; ++t) {
    const double mean = row_math::sum_of_squares(x.row(t), x.cols) / static_cast<double>(x.cols);
    inverse[t] = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon)));
  }
  rms_norm_recompute(x, gain, inverse, out);
}

void rms_norm_recompute(ConstMatrix x, const float* gain, const float* inverse, Matrix out) {
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* __restrict in = x.row(t);
    float* __restrict to = out.row(t);
    const float scale = inverse[t];
    for (int64_t i = 0; i < x.cols; ++i) to[i] = in[i] * scale * gain[i];
  }
}

void rms_norm_backward(ConstMatrix d_out, ConstMatrix x, const float* gain, const float* inverse,
                       Matrix d_x, float* d_gain) {
  const int64_t d = x.cols;
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* __restrict g = d_out.row(t);
    const float* __restrict in = x.row(t);
    float* __restrict to = d_x.row(t);
    float* __restrict to_gain = d_gain;
    const float scale = inverse[t];
    const double dot = row_math::sum_of(d, [=](int64_t i) { return g[i] * gain[i] * in[i]; });
    // The mean of squares depends on every element: its share is -x scale^3 / d * dot.
    const float pull = static_cast<float>(dot / static_cast<double>(d)) * scale * scale * scale;
    for (int64_t i = 0; i < d; ++i) {
      to[i] += g[i] * gain[i] * scale - in[i] * pull;
      to_gain[i] += g[i] * in[i] * scale;
    }
  }
}

}  // namespace airmoe::scheduler
