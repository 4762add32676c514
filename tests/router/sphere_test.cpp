#include <gtest/gtest.h>

#include "router/data.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router {
namespace {

TEST(ProjectToSphere, UnitRowsAndInverseNorms) {
  test::Random random(1);
  for (const int64_t d : {1, 7, 8, 100}) {
    const int64_t n = 20;
    auto centroid = random.normals(n * d);
    for (int64_t i = 0; i < n; ++i) {  // sizes from 1e-18 to 1e18, whose squares are no floats
      const float scale = std::pow(10.0f, static_cast<float>(2 * i - 18));
      for (int64_t k = 0; k < d; ++k) centroid[i * d + k] *= scale;
    }
    std::fill_n(centroid.begin() + 3 * d, d, 0.0f);
    std::vector<float> unit(n * d, 9.0f), inverse(n, 9.0f);
    project_to_sphere(test::matrix(std::as_const(centroid), n, d), test::matrix(unit, n, d),
                      inverse);
    for (int64_t i = 0; i < n; ++i) {
      const double norm = std::sqrt(test::dot(&centroid[i * d], &centroid[i * d], d));
      if (i == 3) {
        EXPECT_EQ(inverse[i], 0.0f);
        for (int64_t k = 0; k < d; ++k) EXPECT_EQ(unit[i * d + k], 0.0f);
        continue;
      }
      EXPECT_NEAR(inverse[i] * norm, 1.0, 1e-7);
      for (int64_t k = 0; k < d; ++k) {
        EXPECT_NEAR(unit[i * d + k], centroid[i * d + k] / norm, 1e-7);
      }
    }
  }
}

// Loss = sum of a(i, k) * unit(i, k), in double precision.
double loss(const std::vector<double>& centroid, const std::vector<float>& a, int64_t n,
            int64_t d) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    double square = 0.0, product = 0.0;
    for (int64_t k = 0; k < d; ++k) {
      square += centroid[i * d + k] * centroid[i * d + k];
      product += centroid[i * d + k] * a[i * d + k];
    }
    sum += product / std::sqrt(square);
  }
  return sum;
}

TEST(ProjectToSphereBackward, EqualsFiniteDifferences) {
  test::Random random(2);
  const int64_t n = 6;
  for (const int64_t d : {1, 2, 9}) {
    const auto centroid = random.normals(n * d);
    const auto a = random.normals(n * d);
    std::vector<float> unit(n * d), inverse(n), gradient = a;  // d loss / d unit = a
    project_to_sphere(test::matrix(centroid, n, d), test::matrix(unit, n, d), inverse);
    project_to_sphere_backward(test::matrix(unit, n, d), inverse, test::matrix(gradient, n, d));
    for (int64_t i = 0; i < n * d; ++i) {
      std::vector<double> up(centroid.begin(), centroid.end()), down = up;
      const double h = 1e-5 * std::abs(up[i]);
      up[i] += h;
      down[i] -= h;
      const double slope = (loss(up, a, n, d) - loss(down, a, n, d)) / (2.0 * h);
      EXPECT_NEAR(gradient[i], slope, 2e-5 * (1.0 + std::abs(slope))) << "d " << d;
    }
  }
}

TEST(ProjectToSphereBackward, ZeroRowsGetNoGradient) {
  const std::vector<float> unit(4, 0.0f), inverse(1, 0.0f);
  std::vector<float> gradient = {1.0f, 2.0f, 3.0f, 4.0f};
  project_to_sphere_backward(test::matrix(unit, 1, 4), inverse, test::matrix(gradient, 1, 4));
  EXPECT_EQ(gradient, std::vector<float>(4, 0.0f));
}

}  // namespace
}  // namespace airmoe::router
