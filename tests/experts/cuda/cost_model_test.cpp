#include "experts/cuda/cost_model.hpp"

#include <cmath>

#include <gtest/gtest.h>

namespace airmoe::experts::cuda {
namespace {

PathShape shape_of(double active, double candidates, double codewords, double experts, int64_t m,
                   int64_t dim) {
  return {.tokens = 8192,
          .tokens_per_codeword = 8192 / codewords,
          .candidates = candidates,
          .active = active,
          .experts = experts,
          .expert_dim = m,
          .dim = dim};
}

TEST(DeviceCostModel, UnitsByHand) {
  PathShape shape{.tokens = 64,
                  .tokens_per_codeword = 16,
                  .candidates = 10,
                  .active = 10,
                  .experts = 100,
                  .expert_dim = 65,
                  .dim = 128};
  EXPECT_EQ(device_dense_units(shape), (DeviceDenseUnits{4.0 * 10 * 65 * 128, 640.0 * 65}));
  EXPECT_NEAR(device_grouped_units(shape)[0], (100 * (1 - std::exp(-6.4)) + 10) * 2 * 2, 1e-9);
  EXPECT_EQ(device_grouped_units(shape)[1], 640.0 * 65);
  EXPECT_EQ(device_grouped_units(shape)[2], 640.0 * 128);
  shape.gated = true;
  EXPECT_EQ(device_dense_units(shape)[0], 1.5 * 4.0 * 10 * 65 * 128);
}

// As measured; see the comment at the constants.
TEST(DeviceCostModel, DenseForOneHiddenUnit) {
  for (const double active : {32, 512}) {
    const PathShape shape = shape_of(active, 2048, 512, 65536, 1, 256);
    EXPECT_EQ(choose_device_path(Path::automatic, shape), Path::dense) << active << " active";
  }
  EXPECT_EQ(choose_device_path(Path::automatic, shape_of(32, 512, 512, 16384, 4, 256)),
            Path::dense);
}

TEST(DeviceCostModel, GroupedForManyHiddenUnits) {
  EXPECT_EQ(choose_device_path(Path::automatic, shape_of(16, 256, 128, 4096, 16, 256)),
            Path::grouped);
  EXPECT_EQ(choose_device_path(Path::automatic, shape_of(8, 64, 64, 1024, 64, 512)), Path::grouped);
}

TEST(DeviceCostModel, AWishIsObeyedAndNothingCostsNothing) {
  const PathShape shape = shape_of(512, 2048, 512, 65536, 1, 256);
  EXPECT_EQ(choose_device_path(Path::grouped, shape), Path::grouped);
  EXPECT_EQ(device_dense_seconds({}), 0);
  EXPECT_EQ(device_grouped_seconds({}), 0);
}

}  // namespace
}  // namespace airmoe::experts::cuda
