#pragma once
// Norms and dot products of float rows in double precision, in one fixed order of additions: the
// same bits on every processor, and no overflow.

#include <cmath>
#include <cstdint>

namespace airmoe::router::detail {

/// sum of x[i] * y[i], as eight chains by i modulo 8.
inline double dot(const float* x, const float* y, int64_t count) {
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      sum[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
    }
  }
  for (int64_t j = 0; i + j < count; ++j) {
    sum[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
  }
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

inline double norm(const float* x, int64_t count) {
  return std::sqrt(dot(x, x, count));
}

}  // namespace airmoe::router::detail
