// Plans: complete, within limits, deterministic, and close to the best on problems small enough to
// try every placement of whole codewords.

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/report.hpp"
#include "scheduler/placement_lists.hpp"

namespace airmoe::scheduler {
namespace {

bool same(const Placement& a, const Placement& b) {
  return a.ranks == b.ranks && a.home == b.home && a.part_begin == b.part_begin &&
         a.primary == b.primary && a.copies == b.copies && a.candidate_rank == b.candidate_rank;
}

struct Shape {
  int ranks;
  int64_t experts, codewords, length;
};

class Plan : public ::testing::TestWithParam<std::tuple<Shape, double>> {};

TEST_P(Plan, IsCompleteAndWithinLimits) {
  const auto [shape, budget] = GetParam();
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    test::Problem problem(shape.ranks, shape.experts, shape.codewords, shape.length, budget, seed);
    for (const bool move : {true, false}) {
      problem.input.move_homes = move;
      const Placement placement = plan(problem.input);
      check_placement(problem.input, placement);  // homes, parts, ranks, rows
      EXPECT_EQ(placement.copies, row_limit(shape.experts, shape.ranks, budget) >
                                      (shape.experts + shape.ranks - 1) / shape.ranks);
      if (!move) {
        const BlockPartition blocks{shape.experts, shape.ranks};
        for (int64_t e = 0; e < shape.experts; ++e) {
          ASSERT_EQ(placement.home[e], blocks.owner(e));
        }
      }
      EXPECT_TRUE(same(placement, plan(problem.input)));
      const Placement again = replan(problem.input, placement, {});
      check_placement(problem.input, again);
      EXPECT_LE(moved_homes(placement, again), shape.experts / 20);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Plan,
    ::testing::Combine(::testing::Values(Shape{1, 50, 8, 10}, Shape{3, 50, 8, 10},
                                         Shape{4, 200, 40, 20}, Shape{7, 203, 5, 30},
                                         Shape{16, 210, 6, 12}, Shape{5, 40, 30, 40},
                                         Shape{9, 9, 4, 3}, Shape{12, 7, 4, 3},
                                         Shape{40, 30, 50, 8}, Shape{100, 250, 20, 16}),
                       ::testing::Values(1.0, 1.15, 1.5, 2.5, 100.0)));

TEST(PlanLimits, WorkIsBalancedWherePartsAllowIt) {
  for (const double budget : {1.0, 1.3, 2.0, 4.0, 100.0}) {
    for (const int ranks : {2, 3, 8}) {
      test::Problem problem(ranks, 4096, 256, 128, budget, 5, 16);
      problem.tokens[3] = 8000;  // several shares: needs parts
      const Placement placement = plan(problem.input);
      check_placement(problem.input, placement);
      EXPECT_LE(report(problem.input, placement).work_imbalance, 1.10)
          << ranks << " ranks, budget " << budget;
      EXPECT_EQ(placement.parts() > 256, budget > 1) << ranks << " ranks, budget " << budget;
    }
  }
}

TEST(PlanLimits, MoreRanksThanCodewordsOrExpertsPlanWithoutAWordOnStdout) {
  for (const auto& [ranks, experts, codewords] :
       {std::tuple{64, 40, 90}, {64, 300, 20}, {50, 7, 3}}) {
    test::Problem problem(ranks, experts, codewords, 6, 4, 2);
    problem.tokens[1] = 900;
    ::testing::internal::CaptureStdout();
    const Placement placement = plan(problem.input);
    EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
    check_placement(problem.input, placement);
  }
}

TEST(PlanLimits, MoreMemoryNeverCostsMuchAndEnoughOfItGivesCoversOfOneRank) {
  double before = std::numeric_limits<double>::infinity();
  for (const double budget : {1.0, 1.5, 2.0, 3.0, 8.0}) {
    test::Problem problem(8, 2048, 128, 64, budget, 9, 32);
    problem.input.costs.per_copy_fetch = problem.input.costs.per_copy_return = 0.5;
    const PlacementReport got = report(problem.input, plan(problem.input));
    EXPECT_LE(got.bytes(), 1.05 * before) << budget;
    before = got.bytes();
    if (budget == 8) {
      EXPECT_DOUBLE_EQ(got.mean_cover, 1);
    }
  }
}

TEST(PlanLimits, RowLimitRoundsDownButNeverBelowTheOwned) {
  EXPECT_EQ(row_limit(100, 10, 1.1), 11);
  EXPECT_EQ(row_limit(100, 10, 1.19), 11);
  EXPECT_EQ(row_limit(101, 10, 1), 11);
  EXPECT_EQ(row_limit(101, 10, 1.2), 12);
  EXPECT_EQ(row_limit(100, 10, 1e30), 100);
}

TEST(PlanLimits, RefusesABudgetBelowOneAndTooManyRanks) {
  test::Problem problem(2, 20, 3, 4, 1);
  for (const double budget : {0.99, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    problem.input.copy_budget = budget;
    EXPECT_THROW(plan(problem.input), Error) << budget;
  }
  problem.input.copy_budget = 1;
  problem.input.ranks = 65536;
  EXPECT_THROW(plan(problem.input), Error);
}

TEST(PlanCodewords, WithoutTokensTheyNeedNoCopies) {
  test::Problem problem(4, 80, 6, 10, 4);
  std::fill(problem.tokens.begin(), problem.tokens.end(), 0.0);
  const Placement placement = plan(problem.input);
  check_placement(problem.input, placement);
  EXPECT_EQ(report(problem.input, placement).bytes(), 0);
  problem.tokens[2] = 40;  // split in four parts, the only copies are theirs
  const Placement one = plan(problem.input);
  check_placement(problem.input, one);
  EXPECT_EQ(one.part_begin[3] - one.part_begin[2], 4);
  const PlacementReport counted = report(problem.input, one);
  EXPECT_LE(std::accumulate(counted.copies.begin(), counted.copies.end(), int64_t{0}), 30);
}

TEST(PlanCodewords, ExpertsInNoListFillUpHomes) {
  // Two codewords of 4 candidates each, 4 ranks: lists of ranks 2 and 3 do not exist.
  const std::vector<int32_t> lists = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<double> tokens = {10, 10};
  const PlanInput input{
      .ranks = 2,
      .experts = 16,
      .codewords = 2,
      .length = 4,
      .lists = lists,
      .tokens = tokens,
      .copy_budget = 2,
      .move_homes = true,
      .costs = {
          .per_token_rank = 1, .shared_token_rank = 1, .per_copy_fetch = 1, .per_copy_return = 1}};
  const PlacementReport got = report(input, plan(input));
  EXPECT_EQ(got.copies, (std::vector<int64_t>{0, 0}));
  EXPECT_DOUBLE_EQ(got.mean_cover, 1);
  EXPECT_DOUBLE_EQ(got.work_imbalance, 1);
}

/// Least bytes over all ways to put whole codewords on ranks within `most` tokens, with the best
/// homes there are: each rank owns what only it uses first, so copies are a matching problem that
/// these shapes (every rank uses more experts than it owns) solve by counting.
double brute_force(const PlanInput& input, double most) {
  const auto codewords = static_cast<std::size_t>(input.codewords);
  std::vector<int> at(codewords, 0);
  double best = std::numeric_limits<double>::infinity();
  for (;;) {
    std::vector<double> load(input.ranks);
    for (std::size_t g = 0; g < codewords; ++g) load[at[g]] += input.tokens[g];
    if (*std::max_element(load.begin(), load.end()) <= most) {
      std::vector<std::vector<char>> uses(input.ranks, std::vector<char>(input.experts));
      for (std::size_t g = 0; g < codewords; ++g) {
        for (int64_t j = 0; j < input.length; ++j)
          uses[at[g]][input.lists[g * input.length + j]] = 1;
      }
      // Copies are at least the uses minus the experts that are used at all.
      double used = 0, some = 0, tokens = 0;
      for (int64_t e = 0; e < input.experts; ++e) {
        int count = 0;
        for (const auto& rank : uses) count += rank[e];
        used += count;
        some += count > 0;
      }
      for (const double t : input.tokens) tokens += t;
      const double elsewhere = static_cast<double>(input.ranks - 1) / input.ranks;
      best = std::min(best, (used - some) * input.costs.per_copy() +
                                tokens * elsewhere * input.costs.per_token(1));
    }
    std::size_t g = 0;
    while (g < codewords && ++at[g] == input.ranks) at[g++] = 0;
    if (g == codewords) return best;
  }
}

TEST(PlanQuality, IsCloseToTheBestOfAllPlacementsOfWholeCodewords) {
  double worst = 0, sum = 0;
  constexpr int kProblems = 20;
  for (uint32_t seed = 1; seed <= kProblems; ++seed) {
    test::Problem problem(2 + seed % 2, 24, 9, 8, 100, seed, 3);
    for (double& t : problem.tokens) t = 10 + std::fmod(t, 5);
    const Placement placement = plan(problem.input);
    const PlacementReport got = report(problem.input, placement);
    const double tokens = std::accumulate(problem.tokens.begin(), problem.tokens.end(), 0.0);
    const double best = brute_force(problem.input, 1.08 * tokens / problem.input.ranks);
    EXPECT_LE(got.work_imbalance, 1.10 + 1e-9) << seed;
    worst = std::max(worst, got.bytes() / best);
    sum += got.bytes() / best;
  }
  EXPECT_LE(worst, 1.35);
  EXPECT_LE(sum / kProblems, 1.08);
}

}  // namespace
}  // namespace airmoe::scheduler
