#include "router/assign.hpp"

#include <gtest/gtest.h>

#include "router/data.hpp"

namespace airmoe::router {
namespace {

TEST(AssignCodewords, EqualsTheArgmaxInDoublePrecision) {
  // Small integers: scores are exact and often tie.
  test::Random random(1);
  for (const int64_t n : {0, 1, 15, 16, 64, 65, 200}) {
    for (const int64_t codewords : {1, 2, 13, 100}) {
      for (const int64_t d : {1, 3, 32}) {
        const auto hidden = random.integers(n * d, -2, 2);
        const auto codebook = random.integers(codewords * d, -2, 2);
        std::vector<int32_t> codeword(n, -1);
        AssignWorkspace workspace;
        assign_codewords(test::matrix(hidden, n, d), test::matrix(codebook, codewords, d), codeword,
                         workspace);
        for (int64_t t = 0; t < n; ++t) {
          std::vector<double> score(codewords);
          for (int64_t g = 0; g < codewords; ++g) {
            score[g] = test::dot(&hidden[t * d], &codebook[g * d], d);
          }
          ASSERT_EQ(codeword[t], test::ranking(score)[0]) << n << " " << codewords << " " << d;
        }
      }
    }
  }
}

TEST(AssignCodewords, DoesNotDependOnBlocking) {
  test::Random random(2);
  const int64_t n = 150, codewords = 37, d = 19;
  const auto hidden = random.normals(n * d);
  const auto codebook = random.normals(codewords * d);
  std::vector<int32_t> together(n), alone(n);
  AssignWorkspace workspace;
  assign_codewords(test::matrix(hidden, n, d), test::matrix(codebook, codewords, d), together,
                   workspace);
  for (int64_t t = 0; t < n; ++t) {
    assign_codewords(test::matrix(hidden, n, d).slice_rows(t, 1),
                     test::matrix(codebook, codewords, d), {&alone[t], 1}, workspace);
  }
  EXPECT_EQ(together, alone);
}

TEST(AssignCodewords, NotANumberGivesAValidCodeword) {
  std::vector<float> hidden(20, std::numeric_limits<float>::quiet_NaN());
  test::Random random(3);
  const auto codebook = random.normals(8 * 4);
  std::vector<int32_t> codeword(5, -1);
  AssignWorkspace workspace;
  assign_codewords(test::matrix(std::as_const(hidden), 5, 4), test::matrix(codebook, 8, 4),
                   codeword, workspace);
  EXPECT_EQ(codeword, std::vector<int32_t>(5, 0));
}

TEST(CodewordOrder, IsAStableSort) {
  test::Random random(4);
  CodewordOrder order;  // reused: buffers shrink and grow
  for (const int64_t n : {0, 1, 300, 5, 1000}) {
    for (const int64_t codewords : {1, 7, 5000}) {
      std::vector<int32_t> codeword(n);
      for (auto& g : codeword) g = static_cast<int32_t>(random.integer(0, codewords - 1));
      order.build(codeword, codewords);
      std::vector<int32_t> expected(n);
      std::iota(expected.begin(), expected.end(), 0);
      std::stable_sort(expected.begin(), expected.end(),
                       [&](int32_t a, int32_t b) { return codeword[a] < codeword[b]; });
      ASSERT_EQ(std::vector<int32_t>(order.token.begin(), order.token.end()), expected);
      ASSERT_EQ(order.begin.size(), order.present.size() + 1);
      ASSERT_EQ(order.begin[0], 0);
      ASSERT_EQ(order.begin[order.present.size()], n);
      for (int64_t i = 0; i < order.present.size(); ++i) {
        ASSERT_LT(order.begin[i], order.begin[i + 1]) << "an absent codeword is listed";
        if (i > 0) {
          ASSERT_LT(order.present[i - 1], order.present[i]);
        }
        for (int64_t j = order.begin[i]; j < order.begin[i + 1]; ++j) {
          ASSERT_EQ(codeword[order.token[j]], order.present[i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace airmoe::router
