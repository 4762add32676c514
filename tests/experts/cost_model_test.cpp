#include "experts/cost_model.hpp"

#include <gtest/gtest.h>

namespace airmoe::experts {
namespace {

PathShape paper_shape() {
  return {.tokens = 8192,
          .tokens_per_codeword = 64,
          .candidates = 2048,
          .active = 512,
          .experts = 65536,
          .expert_dim = 1,
          .dim = 256};
}

TEST(CostModel, UnitsByHand) {
  PathShape shape{.tokens = 32,
                  .tokens_per_codeword = 16,
                  .candidates = 10,
                  .active = 10,
                  .experts = 100,
                  .expert_dim = 2,
                  .dim = 8};
  // Two blocks of 16 tokens, 20 rows each, six products.
  EXPECT_EQ(dense_units(shape),
            (DenseUnits{6.0 * 2 * 20 * 8 * 16, 6.0 * 2 * 20 * 8, 32 * 10 * 2, 2 * (10 + 20 * 16)}));
  const GroupedUnits grouped = grouped_units(shape);
  EXPECT_EQ(grouped[0], 6.0 * 320 * 2 * 8);
  EXPECT_EQ(grouped[1], 6.0 * 320 * 8);
  EXPECT_NEAR(grouped[2], 6.0 * 100 * (1 - 0.0407622) * 2 * 8, 0.01);  // exp(-3.2) untouched
  EXPECT_EQ(grouped[3], 320 * 2);
  EXPECT_EQ(grouped[4], 320);
  shape.gated = true;  // nine products
  EXPECT_EQ(dense_units(shape)[1], 9.0 * 2 * 20 * 8);
  EXPECT_EQ(grouped_units(shape)[1], 9.0 * 320 * 8);
}

TEST(CostModel, OnlySelectedCandidatesCount) {
  // One token per block selects a quarter of the candidates.
  const PathShape shape{.tokens = 3,
                        .tokens_per_codeword = 1,
                        .candidates = 100,
                        .active = 25,
                        .experts = 200,
                        .expert_dim = 1,
                        .dim = 4};
  EXPECT_DOUBLE_EQ(dense_units(shape)[1], 6.0 * 3 * 25 * 4);
}

TEST(CostModel, DenseForThePapersShapeGroupedForSparseAndWideOnes) {
  EXPECT_EQ(choose_path(Path::automatic, paper_shape()), Path::dense);
  PathShape sparse = paper_shape();
  sparse.active = 4;
  EXPECT_EQ(choose_path(Path::automatic, sparse), Path::grouped);
  PathShape wide = paper_shape();
  wide.expert_dim = 64;
  wide.active = 128;
  EXPECT_EQ(choose_path(Path::automatic, wide), Path::grouped);
}

TEST(CostModel, AWishIsObeyed) {
  EXPECT_EQ(choose_path(Path::grouped, paper_shape()), Path::grouped);
  EXPECT_EQ(choose_path(Path::dense, paper_shape()), Path::dense);
}

TEST(CostModel, NothingToDoCostsNothing) {
  EXPECT_EQ(dense_seconds({}), 0);
  EXPECT_EQ(grouped_seconds({}), 0);
  EXPECT_EQ(choose_path(Path::automatic, {}), Path::dense);
}

}  // namespace
}  // namespace airmoe::experts
