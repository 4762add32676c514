#pragma once
// Test data, and the orders that the router promises, written the slow and obvious way.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "comm/base/matrix_view.hpp"
#include "comm/base/panel.hpp"

namespace airmoe::router::test {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  float normal() { return std::normal_distribution<float>()(engine_); }
  std::vector<float> normals(int64_t count) {
    std::vector<float> x(count);
    for (float& v : x) v = normal();
    return x;
  }
  /// Small integers: sums and products are exact, and there are many ties.
  std::vector<float> integers(int64_t count, int64_t low, int64_t high) {
    std::vector<float> x(count);
    for (float& v : x) v = static_cast<float>(integer(low, high));
    return x;
  }

 private:
  std::mt19937 engine_;
};

inline Matrix matrix(std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), rows, cols};
}
inline ConstMatrix matrix(const std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), rows, cols};
}

/// Indices 0.. by (score descending, index ascending); NaN counts as minus infinity.
inline std::vector<int32_t> ranking(const std::vector<double>& score) {
  const auto value = [&](int32_t i) {
    return std::isnan(score[i]) ? -std::numeric_limits<double>::infinity() : score[i];
  };
  std::vector<int32_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return value(a) > value(b); });
  return order;
}

/// The first k of ranking(), as ascending indices.
inline std::vector<int32_t> top_indices(const std::vector<double>& score, int64_t k) {
  std::vector<int32_t> order = ranking(score);
  order.resize(static_cast<std::size_t>(std::min<int64_t>(k, static_cast<int64_t>(order.size()))));
  std::sort(order.begin(), order.end());
  return order;
}

inline double dot(const float* a, const float* b, int64_t d) {
  double sum = 0.0;
  for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(a[k]) * b[k];
  return sum;
}

}  // namespace airmoe::router::test
