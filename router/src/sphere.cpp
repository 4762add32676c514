#include <algorithm>
#include <limits>

#include "comm/base/error.hpp"
#include "router/shortlist.hpp"
#include "router/src/norm.hpp"

namespace airmoe::router {

void project_to_sphere(ConstMatrix centroid, Matrix unit, std::span<float> inverse_norm) {
  AIRMOE_CHECK(unit.rows == centroid.rows && unit.cols == centroid.cols &&
                   static_cast<int64_t>(inverse_norm.size()) == centroid.rows,
               "project_to_sphere: shapes [{}, {}], [{}, {}], [{}]", centroid.rows, centroid.cols,
               unit.rows, unit.cols, inverse_norm.size());
  for (int64_t i = 0; i < centroid.rows; ++i) {
    const float* from = centroid.row(i);
    float* to = unit.row(i);
    const double norm = detail::norm(from, centroid.cols);
    if (norm < std::numeric_limits<float>::min()) {  // its inverse is no float
      std::fill_n(to, unit.cols, 0.0f);
      inverse_norm[i] = 0.0f;
      continue;
    }
    const double inverse = 1.0 / norm;
    for (int64_t k = 0; k < unit.cols; ++k) to[k] = static_cast<float>(from[k] * inverse);
    inverse_norm[i] = static_cast<float>(inverse);
  }
}

void project_to_sphere_backward(ConstMatrix unit, std::span<const float> inverse_norm,
                                Matrix gradient) {
  AIRMOE_CHECK(gradient.rows == unit.rows && gradient.cols == unit.cols &&
                   static_cast<int64_t>(inverse_norm.size()) == unit.rows,
               "project_to_sphere_backward: shapes [{}, {}], [{}, {}], [{}]", unit.rows, unit.cols,
               gradient.rows, gradient.cols, inverse_norm.size());
  for (int64_t i = 0; i < unit.rows; ++i) {
    const float* u = unit.row(i);
    float* g = gradient.row(i);
    const float radial = static_cast<float>(detail::dot(g, u, unit.cols));
    const float scale = inverse_norm[i];
    for (int64_t k = 0; k < unit.cols; ++k) g[k] = (g[k] - radial * u[k]) * scale;
  }
}

}  // namespace airmoe::router
