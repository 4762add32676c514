// Projection on a device against the host functions, bit for bit.

#include "router/cuda/sphere.hpp"

#include <utility>

#include <gtest/gtest.h>

#include "router/cuda/routed_data.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::router::test::matrix;

std::vector<float> rows_of_all_sizes(int64_t n, int64_t d) {
  airmoe::router::test::Random random(static_cast<uint32_t>(n * d));
  auto x = random.normals(n * d);
  for (int64_t i = 0; i < n; ++i) {  // squares that are no floats, and rows too short to project
    const float scale = i % 7 == 3 ? 1e-18f : i % 7 == 5 ? 1e18f : i % 11 == 6 ? 1e-39f : 1.0f;
    for (int64_t k = 0; k < d; ++k) x[i * d + k] *= scale;
  }
  if (n > 2) std::fill_n(x.begin() + 2 * d, d, 0.0f);
  return x;
}

template <class T>
void project(int64_t n, int64_t d) {
  const test::Stream stream;
  const auto centroid = rows_of_all_sizes(n, d);
  std::vector<float> unit(n * d), inverse(n);
  router::project_to_sphere(matrix(centroid, n, d), matrix(unit, n, d), inverse);

  test::DeviceBuffer<float> from, norms(n + 1);
  test::DeviceBuffer<T> to(n * d);
  from.upload(centroid, stream);
  project_to_sphere<T>(from.data(), n, d, to.data(), norms.data(), stream);
  EXPECT_EQ(test::bits(test::download(norms.data(), n, stream)), test::bits(inverse));
  const auto found = test::download(to.data(), n * d, stream);
  for (int64_t i = 0; i < n * d; ++i) {
    const float expected = static_cast<float>(T(unit[i]));
    ASSERT_EQ(std::bit_cast<uint32_t>(static_cast<float>(found[i])),
              std::bit_cast<uint32_t>(expected))
        << n << " x " << d << ", " << i;
  }
}

constexpr std::pair<int64_t, int64_t> kShapes[] = {{0, 8},     {1, 8},      {3, 64},   {33, 24},
                                                   {100, 256}, {257, 1024}, {31, 768}, {4096, 128}};

TEST(DeviceSphere, SameBitsAsOnTheHost) {
  for (const auto& [n, d] : kShapes) project<float>(n, d);
}

TEST(DeviceSphere, RoundsTheHostsRowsToBf16) {
  for (const auto& [n, d] : kShapes) project<__nv_bfloat16>(n, d);
}

TEST(DeviceSphere, BackwardHasTheSameBits) {
  const test::Stream stream;
  for (const auto& [n, d] : kShapes) {
    const auto centroid = rows_of_all_sizes(n, d);
    std::vector<float> unit(n * d), inverse(n);
    router::project_to_sphere(matrix(centroid, n, d), matrix(unit, n, d), inverse);
    auto gradient = airmoe::router::test::Random(5).normals(n * d);
    test::DeviceBuffer<float> from, norms, g;
    from.upload(centroid, stream);
    norms.upload(inverse, stream);
    g.upload(gradient, stream);
    project_to_sphere_backward(g.data(), from.data(), norms.data(), n, d, nullptr, 0, stream);
    router::project_to_sphere_backward(matrix(std::as_const(unit), n, d), inverse,
                                       matrix(gradient, n, d));
    const auto found = test::download(g.data(), n * d, stream);
    for (int64_t i = 0; i < n * d; ++i) ASSERT_EQ(found[i], gradient[i]) << n << " x " << d;
  }
}

TEST(DeviceSphere, BackwardLeavesOtherRowsAlone) {
  const test::Stream stream;
  for (const auto& [n, d] : kShapes) {
    const auto centroid = rows_of_all_sizes(n, d);
    const auto gradient = airmoe::router::test::Random(6).normals(n * d);
    std::vector<float> unit(n * d), inverse(n);
    router::project_to_sphere(matrix(centroid, n, d), matrix(unit, n, d), inverse);
    std::vector<int32_t> number(n);
    for (int64_t r = 0; r < n; ++r) number[r] = static_cast<int32_t>(r * r % 7 % 3);
    test::DeviceBuffer<float> from, norms, all, some;
    test::DeviceBuffer<int32_t> chosen;
    from.upload(centroid, stream);
    norms.upload(inverse, stream);
    all.upload(gradient, stream);
    some.upload(gradient, stream);
    chosen.upload(number, stream);
    project_to_sphere_backward(all.data(), from.data(), norms.data(), n, d, nullptr, 0, stream);
    project_to_sphere_backward(some.data(), from.data(), norms.data(), n, d, chosen.data(), 1,
                               stream);
    const auto projected = test::download(all.data(), n * d, stream);
    const auto found = test::download(some.data(), n * d, stream);
    for (int64_t i = 0; i < n * d; ++i) {
      ASSERT_EQ(found[i], number[i / d] == 1 ? projected[i] : gradient[i]) << n << " x " << d;
    }
  }
}

TEST(DeviceSphere, OtherWidthsAreRefusedByName) {
  const test::Stream stream;
  try {
    project_to_sphere<float>(nullptr, 0, 12, nullptr, nullptr, stream);
    FAIL() << "12 columns were accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--dim 12"), std::string::npos);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
