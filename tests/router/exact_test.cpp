#include "router/exact.hpp"

#include <gtest/gtest.h>

#include "router/data.hpp"

namespace airmoe::router {
namespace {

TEST(ExactTop, EqualsSortingAllScores) {
  test::Random random(1);
  for (const auto& [n, experts, d, k] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 1, 1, 1},
                                         {3, 20, 5, 40},
                                         {7, 3000, 4, 1},
                                         {520, 1100, 8, 33},
                                         {2, 5000, 16, 1500}}) {
    SCOPED_TRACE(::testing::Message() << n << " " << experts << " " << d << " " << k);
    const auto hidden = random.integers(n * d, -2, 2);  // exact scores, many ties
    const auto centroid = random.integers(experts * d, -2, 2);
    ExactTop top;
    ExactWorkspace workspace;
    exact_top(test::matrix(hidden, n, d), test::matrix(centroid, experts, d), 1000, k, top,
              workspace);
    ASSERT_EQ(top.stride, std::min(k, experts));
    ASSERT_EQ(top.log_sum_exp.size(), n);
    for (int64_t t = 0; t < n; ++t) {
      std::vector<double> score(experts);
      double sum = 0.0;
      for (int64_t e = 0; e < experts; ++e) {
        score[e] = test::dot(&hidden[t * d], &centroid[e * d], d);
        sum += std::exp(score[e]);
      }
      const std::vector<int32_t> expected = test::ranking(score);
      for (int64_t i = 0; i < top.stride; ++i) {
        ASSERT_EQ(top.expert[t * top.stride + i], 1000 + expected[i]) << "token " << t;
        ASSERT_EQ(top.score[t * top.stride + i], score[expected[i]]);
      }
      ASSERT_NEAR(top.log_sum_exp[t], std::log(sum), 1e-6);
    }
  }
}

TEST(ExactTop, PartitionSumIsOptional) {
  test::Random random(2);
  const auto hidden = random.normals(10 * 4), centroid = random.normals(30 * 4);
  ExactTop with, without;
  ExactWorkspace workspace;
  exact_top(test::matrix(hidden, 10, 4), test::matrix(centroid, 30, 4), 0, 5, with, workspace);
  exact_top(test::matrix(hidden, 10, 4), test::matrix(centroid, 30, 4), 0, 5, without, workspace,
            false);
  EXPECT_EQ(without.log_sum_exp.size(), 0);
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(with.expert[i], without.expert[i]);
}

TEST(ExactTop, LargeScoresStayInLogSpace) {
  const std::vector<float> hidden = {1000.0f}, centroid = {1.0f, -1.0f, 1.0f};
  ExactTop top;
  ExactWorkspace workspace;
  exact_top(test::matrix(hidden, 1, 1), test::matrix(centroid, 3, 1), 0, 2, top, workspace);
  EXPECT_NEAR(top.log_sum_exp[0], 1000.0 + std::log(2.0), 1e-9);
}

TEST(ExactTop, NoTokensAndNoExperts) {
  const std::vector<float> none, some = {1.0f, 2.0f};
  ExactTop top;
  ExactWorkspace workspace;
  exact_top(test::matrix(none, 0, 2), test::matrix(some, 1, 2), 0, 3, top, workspace);
  EXPECT_EQ(top.log_sum_exp.size(), 0);
  exact_top(test::matrix(some, 1, 2), test::matrix(none, 0, 2), 0, 3, top, workspace);
  EXPECT_EQ(top.stride, 0);
  EXPECT_EQ(top.log_sum_exp[0], -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace airmoe::router
