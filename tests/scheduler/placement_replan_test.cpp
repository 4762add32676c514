// Incremental plans: what may stay stays, limits hold, and quality is near that of a new plan.

#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/report.hpp"
#include "scheduler/placement_lists.hpp"

namespace airmoe::scheduler {
namespace {

TEST(Replan, OfTheSameListsChangesNoRankOfACandidate) {
  test::Problem problem(4, 1024, 64, 64, 100, 2, 8);
  const Placement before = plan(problem.input);
  const Placement after = replan(problem.input, before, {});
  EXPECT_EQ(after.candidate_rank, before.candidate_rank);
  EXPECT_EQ(after.part_begin, before.part_begin);
  EXPECT_LE(report(problem.input, after).bytes(), report(problem.input, before).bytes());
}

TEST(Replan, FollowsListsThatChangeALittle) {
  for (const double budget : {1.0, 1.3, 2.0, 100.0}) {
    test::Problem problem(5, 2048, 96, 100, budget, 3, 8);
    const Placement before = plan(problem.input);
    const std::vector<int32_t> old_lists = problem.lists;
    problem.change_entries(1, 11);
    const Placement after = replan(problem.input, before, old_lists);
    check_placement(problem.input, after);
    EXPECT_LE(moved_homes(before, after), 2048 / 20) << budget;
    const PlacementReport got = report(problem.input, after),
                          fresh = report(problem.input, plan(problem.input));
    EXPECT_LE(got.work_imbalance, 1.10) << budget;
    EXPECT_LE(got.bytes(), 1.1 * fresh.bytes()) << budget;
    int64_t moved = 0, stayed = 0;  // entries that are still there, by expert
    for (int64_t p = 0; after.copies && p < before.parts(); ++p) {
      std::vector<int> rank(2048, -1);
      const int64_t g = std::upper_bound(before.part_begin.begin(), before.part_begin.end(), p) -
                        before.part_begin.begin() - 1;
      for (int64_t j = 0; j < 100; ++j) {
        rank[old_lists[g * 100 + j]] = before.candidate_rank[p * 100 + j];
      }
      for (int64_t j = 0; j < 100; ++j) {
        const int was = rank[problem.lists[g * 100 + j]];
        if (was >= 0) (was == after.candidate_rank[p * 100 + j] ? stayed : moved) += 1;
      }
    }
    EXPECT_LE(moved, stayed / 10) << budget;
  }
}

TEST(Replan, RespectsTheLimitOfMovedHomes) {
  test::Problem problem(4, 1024, 64, 64, 100, 2, 7);
  problem.input.move_homes = false;
  const Placement blocks = plan(problem.input);
  problem.input.move_homes = true;
  int64_t last = 0;
  for (const double limit : {0.01, 0.03, 0.5}) {
    const Placement after = replan(problem.input, blocks, {}, {.moved_homes = limit});
    check_placement(problem.input, after);
    const int64_t moved = moved_homes(blocks, after);
    EXPECT_LE(moved, static_cast<int64_t>(limit * 1024));
    EXPECT_GT(moved, last) << limit;
    last = moved;
  }
  EXPECT_EQ(moved_homes(blocks, replan(problem.input, blocks, {}, {.moved_homes = 0})), 0);
  EXPECT_LT(report(problem.input, replan(problem.input, blocks, {})).bytes(),
            report(problem.input, blocks).bytes());
}

TEST(Replan, GivesMorePartsToACodewordThatGrew) {
  test::Problem problem(4, 512, 32, 40, 100, 4, 4);
  const Placement before = plan(problem.input);
  problem.tokens[5] = 4000;
  const Placement after = replan(problem.input, before, {});
  check_placement(problem.input, after);
  EXPECT_EQ(before.part_begin[6] - before.part_begin[5], 1);
  EXPECT_GE(after.part_begin[6] - after.part_begin[5], 3);
  EXPECT_LE(report(problem.input, after).work_imbalance, 1.10);
}

TEST(Replan, CopesWithRanksThatOwnNothing) {
  for (const auto& [ranks, experts, codewords] : {std::tuple{30, 17, 9}, {30, 17, 60}, {9, 8, 2}}) {
    for (const double budget : {1.0, 2.5, 40.0}) {
      test::Problem problem(ranks, experts, codewords, 5, budget, 3);
      const Placement before = plan(problem.input);
      const std::vector<int32_t> old_lists = problem.lists;
      problem.change_entries(2, 5);
      problem.tokens[0] = 400;
      for (const double moved : {0.0, 0.05, 1.0}) {
        const Placement after = replan(problem.input, before, old_lists, {.moved_homes = moved});
        check_placement(problem.input, after);
        EXPECT_LE(moved_homes(before, after), static_cast<int64_t>(moved * experts));
      }
    }
  }
}

TEST(Replan, CopesWithAnotherBudget) {
  test::Problem problem(4, 512, 32, 40, 1, 4, 4);
  const Placement none = plan(problem.input);
  for (const double budget : {3.0, 1.2, 1.0, 2.0}) {
    problem.input.copy_budget = budget;
    static Placement last = none;
    last = replan(problem.input, last, {});
    check_placement(problem.input, last);
    EXPECT_EQ(last.copies, budget > 1);
  }
}

TEST(Replan, RefusesAPlacementOfAnotherShape) {
  test::Problem problem(4, 512, 32, 40, 1), other(3, 512, 32, 40, 1);
  EXPECT_THROW(replan(problem.input, plan(other.input), {}), Error);
}

}  // namespace
}  // namespace airmoe::scheduler
