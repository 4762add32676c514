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
  // Two blocks of 16 tokens, 20 rows each; two matrices, one panel product and two
  // sums over pairs with each, of which one goes to doubles.
  EXPECT_EQ(dense_units(shape), (DenseUnits{2.0 * 2 * 20 * 8 * 16, 2.0 * 2 * 32 * 10 * 2 * 8,
                                            2.0 * 4 * 2 * 20 * 8, 0}));
  const GroupedUnits grouped = grouped_units(shape);
  EXPECT_EQ(grouped[0], 6.0 * 320 * 2 * 8);
  EXPECT_EQ(grouped[1], 6.0 * 320 * 8);
  EXPECT_EQ(grouped[2], 0);                                            // in the cache
  EXPECT_NEAR(grouped[3], 8.0 * 100 * (1 - 0.0407622) * 2 * 8, 0.01);  // exp(-3.2) untouched
  EXPECT_EQ(grouped[4], 320 * 2);
  EXPECT_EQ(grouped[5], 320);
  shape.gated = true;  // three matrices
  EXPECT_EQ(dense_units(shape)[0], 3.0 * 2 * 20 * 8 * 16);
  EXPECT_EQ(dense_units(shape)[1], 3.0 * 2 * 32 * 10 * 2 * 8);
  EXPECT_EQ(dense_units(shape)[2], 3.0 * 4 * 2 * 20 * 8);
  EXPECT_EQ(grouped_units(shape)[1], 9.0 * 320 * 8);
}

TEST(CostModel, WhatExceedsTheCacheMisses) {
  PathShape shape{.tokens = 8192,  // of 256 * (4 + 4 + 8) bytes: 16 times the cache
                  .tokens_per_codeword = 16,
                  .candidates = 4,
                  .active = 2,
                  .experts = 4096,  // two tables of 4 and two of 8 MiB: 12 times the cache
                  .expert_dim = 1,
                  .dim = 256};
  EXPECT_DOUBLE_EQ(dense_units(shape)[3], dense_units(shape)[2] * 11 / 12);
  EXPECT_DOUBLE_EQ(grouped_units(shape)[2], grouped_units(shape)[1] * 15 / 16);
  shape.gated = true;  // three of each
  EXPECT_DOUBLE_EQ(dense_units(shape)[3], dense_units(shape)[2] * 17 / 18);
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
  EXPECT_DOUBLE_EQ(dense_units(shape)[2], 8.0 * 3 * 25 * 4);
}

// As measured; see the comment at the constants.
TEST(CostModel, DenseForThePapersShape) {
  PathShape shape = paper_shape();
  for (double tokens : {4096, 8192, 16384}) {  // of the whole micro-batch, over 512 codewords
    shape.tokens = tokens;
    shape.tokens_per_codeword = tokens / 512;
    EXPECT_EQ(choose_path(Path::automatic, shape), Path::dense) << tokens << " tokens";
  }
}

TEST(CostModel, GroupedForWideOnes) {
  for (double tokens_per_codeword : {4, 16, 64}) {
    const PathShape wide{.tokens = 256,
                         .tokens_per_codeword = tokens_per_codeword,
                         .candidates = 1024,
                         .active = 16,
                         .experts = 4096,
                         .expert_dim = 16,
                         .dim = 256};
    EXPECT_EQ(choose_path(Path::automatic, wide), Path::grouped) << tokens_per_codeword;
  }
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
