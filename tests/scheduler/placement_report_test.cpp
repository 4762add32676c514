// report() against counting with sets.

#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/placement/report.hpp"
#include "scheduler/placement_lists.hpp"

namespace airmoe::scheduler {
namespace {

/// Any valid placement: owners, parts and candidate ranks at random.
Placement random_placement(const PlanInput& input, bool copies, uint32_t seed) {
  std::mt19937 random(seed);
  Placement out;
  out.ranks = input.ranks;
  out.copies = copies;
  for (int64_t e = 0; e < input.experts; ++e) {
    out.home.push_back(static_cast<int32_t>(e % input.ranks));
  }
  std::shuffle(out.home.begin(), out.home.end(), random);
  out.part_begin.push_back(0);
  for (int64_t g = 0; g < input.codewords; ++g) {
    const int parts = copies ? 1 + static_cast<int>(random() % 3) : 1;
    out.part_begin.push_back(out.part_begin.back() + parts);
    for (int i = 0; i < parts; ++i) {
      const int spread = 1 + static_cast<int>(random() % static_cast<unsigned>(input.ranks));
      out.primary.push_back(0);
      for (int64_t j = 0; copies && j < input.length; ++j) {
        out.candidate_rank.push_back(
            static_cast<uint16_t>(random() % static_cast<unsigned>(spread)));
      }
    }
  }
  return out;
}

class Report : public ::testing::TestWithParam<bool> {};

TEST_P(Report, EqualsNaiveCounting) {
  test::Problem problem(5, 60, 12, 9, 5);
  const PlanInput& input = problem.input;
  const Placement placement = random_placement(input, GetParam(), 7);
  const PlacementReport got = report(input, placement);

  std::vector<std::set<int32_t>> copies(5);
  std::vector<double> tokens(5), work(5);
  std::vector<int64_t> owned(5);
  for (const int32_t r : placement.home) ++owned[r];
  double visits = 0, shared = 0, all = 0;
  for (int64_t g = 0; g < input.codewords; ++g) {
    const int parts = placement.part_begin[g + 1] - placement.part_begin[g];
    all += input.tokens[g];
    for (int p = placement.part_begin[g]; p < placement.part_begin[g + 1]; ++p) {
      std::set<int> cover;
      for (int64_t j = 0; j < input.length; ++j) {
        const int32_t e = input.lists[g * input.length + j];
        const int r =
            GetParam() ? placement.candidate_rank[p * input.length + j] : placement.home[e];
        cover.insert(r);
        work[r] += input.tokens[g] / parts;
        if (r != placement.home[e]) copies[r].insert(e);
      }
      for (const int r : cover) tokens[r] += input.tokens[g] / parts;
      const double there = input.tokens[g] / parts * static_cast<double>(cover.size());
      visits += there;
      if (cover.size() > 1) shared += there;
    }
  }
  int64_t all_copies = 0, rows = 0;
  for (int r = 0; r < 5; ++r) {
    EXPECT_EQ(got.owned[r], owned[r]);
    EXPECT_EQ(got.copies[r], std::ssize(copies[r]));
    EXPECT_NEAR(got.tokens[r], tokens[r], 1e-9);
    EXPECT_NEAR(got.work[r], work[r], 1e-9);
    all_copies += std::ssize(copies[r]);
    rows = std::max(rows, owned[r] + std::ssize(copies[r]));
  }
  EXPECT_DOUBLE_EQ(got.rows_max, static_cast<double>(rows) / 12);
  EXPECT_DOUBLE_EQ(got.rows_mean, 1 + static_cast<double>(all_copies) / 60);
  EXPECT_NEAR(got.mean_cover, visits / all, 1e-9);
  EXPECT_NEAR(got.token_bytes, visits * 0.8 * 4, 1e-9);
  EXPECT_NEAR(got.shared_bytes, shared * 0.8 * 6, 1e-9);
  EXPECT_DOUBLE_EQ(got.copy_fetch_bytes, static_cast<double>(all_copies) * 3);
  EXPECT_DOUBLE_EQ(got.copy_return_bytes, static_cast<double>(all_copies) * 0.5 * 5);
  EXPECT_NEAR(got.work_imbalance,
              *std::max_element(work.begin(), work.end()) * 5 /
                  std::accumulate(work.begin(), work.end(), 0.0),
              1e-9);
  EXPECT_NEAR(got.tokens_imbalance,
              *std::max_element(tokens.begin(), tokens.end()) * 5 /
                  std::accumulate(tokens.begin(), tokens.end(), 0.0),
              1e-9);
}

INSTANTIATE_TEST_SUITE_P(Copies, Report, ::testing::Bool());

TEST(Report, CountsMovedHomes) {
  test::Problem problem(3, 9, 2, 3, 1);
  Placement a = random_placement(problem.input, false, 1), b = a;
  std::swap(b.home[0], b.home[1]);
  EXPECT_EQ(moved_homes(a, b), a.home[0] == a.home[1] ? 0 : 2);
  EXPECT_EQ(moved_homes(a, a), 0);
}

TEST(Report, CheckFindsWhatIsWrong) {
  test::Problem problem(3, 12, 4, 5, 3);
  const Placement good = random_placement(problem.input, true, 2);
  EXPECT_NO_THROW(check_placement(problem.input, good));
  Placement bad = good;
  bad.home[0] = (bad.home[0] + 1) % 3;
  EXPECT_THROW(check_placement(problem.input, bad), Error);  // unequal homes
  bad = good;
  bad.candidate_rank[3] = 3;
  EXPECT_THROW(check_placement(problem.input, bad), Error);  // no such rank
  bad = good;
  bad.part_begin[1] = 0;
  EXPECT_THROW(check_placement(problem.input, bad), Error);  // a codeword without parts
  bad = good;
  bad.candidate_rank.pop_back();
  EXPECT_THROW(check_placement(problem.input, bad), Error);
  problem.input.copy_budget = 1;  // rows beyond the budget
  EXPECT_THROW(check_placement(problem.input, good), Error);
}

}  // namespace
}  // namespace airmoe::scheduler
