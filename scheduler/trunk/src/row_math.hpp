#pragma once
// Reductions over a contiguous row, in an order that depends on its length only. Sixteen partial
// results let the compiler vectorise; blocks of them are added in double.

#include <algorithm>
#include <cstdint>
#include <limits>

namespace airmoe::scheduler::row_math {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kBlock = 1024;

/// sum of term(i), i = 0..n-1.
template <class Term>
double sum_of(int64_t n, Term term) {
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    float lane[kLanes] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += term(i + j);
    }
    for (int64_t j = 0; i < end; ++i, ++j) lane[j] += term(i);
    for (int64_t width = kLanes / 2; width >= 1; width /= 2) {
      for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
    }
    total += static_cast<double>(lane[0]);
  }
  return total;
}

inline double sum(const float* x, int64_t n) {
  return sum_of(n, [x](int64_t i) { return x[i]; });
}

inline double sum_of_squares(const float* x, int64_t n) {
  return sum_of(n, [x](int64_t i) { return x[i] * x[i]; });
}

inline double dot(const float* x, const float* y, int64_t n) {
  return sum_of(n, [x, y](int64_t i) { return x[i] * y[i]; });
}

inline float maximum(const float* x, int64_t n) {
  float lane[kLanes];
  std::fill_n(lane, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  }
  for (int64_t j = 0; i < n; ++i, ++j) lane[j] = x[i] > lane[j] ? x[i] : lane[j];
  return *std::max_element(lane, lane + kLanes);
}

}  // namespace airmoe::scheduler::row_math
