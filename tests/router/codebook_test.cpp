#include "router/codebook.hpp"

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "router/data.hpp"

namespace airmoe::router {
namespace {

// The paper's update in plain double precision.
struct Plain {
  int64_t codewords, d;
  double decay;
  std::vector<double> codeword, count, sum;

  Plain(Codebook& codebook)
      : codewords(codebook.config().codewords),
        d(codebook.config().dim),
        decay(codebook.config().decay),
        codeword(codebook.codewords().data, codebook.codewords().data + codewords * d),
        count(codebook.counts().begin(), codebook.counts().end()),
        sum(codebook.sums().data, codebook.sums().data + codewords * d) {}

  void update(const std::vector<float>& hidden, const std::vector<int32_t>& assigned) {
    std::vector<double> n(codewords), m(codewords * d);
    for (std::size_t t = 0; t < assigned.size(); ++t) {
      const float* h = &hidden[t * d];
      const double norm = std::sqrt(test::dot(h, h, d));
      n[assigned[t]] += 1.0;
      for (int64_t k = 0; k < d && norm > 0.0; ++k) m[assigned[t] * d + k] += h[k] / norm;
    }
    for (int64_t g = 0; g < codewords; ++g) {
      count[g] = decay * count[g] + (1.0 - decay) * n[g];
      double square = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        double& s = sum[g * d + k];
        s = decay * s + (1.0 - decay) * m[g * d + k];
        square += s * s;
      }
      for (int64_t k = 0; k < d && square > 0.0; ++k) {
        codeword[g * d + k] = sum[g * d + k] / std::sqrt(square);
      }
    }
  }

  void expect_near(Codebook& codebook, double tolerance) const {
    for (int64_t g = 0; g < codewords; ++g) {
      EXPECT_NEAR(codebook.counts()[g], count[g], tolerance * (1.0 + count[g]));
    }
    for (int64_t i = 0; i < codewords * d; ++i) {
      EXPECT_NEAR(codebook.sums().data[i], sum[i], tolerance * (1.0 + std::abs(sum[i])));
      EXPECT_NEAR(codebook.codewords().data[i], codeword[i], tolerance);
    }
  }
};

std::vector<int32_t> random_codewords(test::Random& random, int64_t n, int64_t codewords) {
  std::vector<int32_t> codeword(n);
  for (auto& g : codeword) g = static_cast<int32_t>(random.integer(0, codewords - 1));
  return codeword;
}

TEST(Codebook, InitialisedFromTokens) {
  Codebook codebook({.codewords = 3, .dim = 2});
  const std::vector<float> tokens = {3.0f, -4.0f, 0.0f, 0.0f, 0.0f, 1e-30f};
  codebook.initialise(test::matrix(tokens, 3, 2), 10.0f);
  const float expected[] = {0.6f, -0.8f, 1.0f, 0.0f, 0.0f, 1.0f};
  for (int64_t i = 0; i < 6; ++i) {
    EXPECT_FLOAT_EQ(codebook.codewords().data[i], expected[i]);
    EXPECT_FLOAT_EQ(codebook.sums().data[i], 10.0f * expected[i]);
  }
  for (const float n : codebook.counts()) EXPECT_EQ(n, 10.0f);
}

TEST(Codebook, FollowsThePlainMovingAverage) {
  test::Random random(1);
  for (const auto& [codewords, d] : {std::pair<int64_t, int64_t>{1, 1}, {1, 9}, {5, 1}, {12, 33}}) {
    Codebook codebook({.codewords = codewords, .dim = d, .decay = 0.9f, .dead_threshold = 0.0f});
    const auto first = random.normals(codewords * d);
    codebook.initialise(test::matrix(first, codewords, d), 4.0f);
    Plain plain(codebook);
    for (int step = 0; step < 20; ++step) {
      const int64_t n = step == 7 ? 0 : 100;
      const auto hidden = random.normals(n * d);
      const auto codeword = random_codewords(random, n, codewords);
      std::vector<int64_t> statistics(codebook.statistics_size(), 0);
      codebook.collect(test::matrix(hidden, n, d), codeword, statistics);
      std::vector<int32_t> dead = {99};
      codebook.update(statistics, dead);
      EXPECT_TRUE(dead.empty());
      plain.update(hidden, codeword);
    }
    plain.expect_near(codebook, 3e-6);
  }
}

TEST(Codebook, StatisticsDoNotDependOnHowTokensAreSplit) {
  test::Random random(2);
  const int64_t n = 301, codewords = 7, d = 13;
  const Codebook codebook({.codewords = codewords, .dim = d});
  const auto hidden = random.normals(n * d);
  const auto codeword = random_codewords(random, n, codewords);
  std::vector<int64_t> whole(codebook.statistics_size(), 0);
  codebook.collect(test::matrix(hidden, n, d), codeword, whole);
  for (const std::vector<int64_t>& edges :
       {std::vector<int64_t>{0, 301}, {0, 0, 150, 301}, {0, 1, 2, 300, 300, 301}}) {
    std::vector<int64_t> sum(whole.size(), 0);
    for (std::size_t r = edges.size() - 1; r > 0; --r) {  // and in another order
      std::vector<int64_t> part(whole.size(), 0);
      const int64_t count = edges[r] - edges[r - 1];
      codebook.collect(test::matrix(hidden, n, d).slice_rows(edges[r - 1], count),
                       {codeword.data() + edges[r - 1], static_cast<std::size_t>(count)}, part);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    EXPECT_EQ(sum, whole);
  }
}

TEST(Codebook, ZeroAndBadTokensCountButAddNothing) {
  const Codebook codebook({.codewords = 2, .dim = 2});
  const std::vector<float> hidden = {0.0f,
                                     0.0f,
                                     std::numeric_limits<float>::quiet_NaN(),
                                     1.0f,
                                     std::numeric_limits<float>::infinity(),
                                     1.0f,
                                     0.0f,
                                     -2.0f};
  std::vector<int64_t> statistics(codebook.statistics_size(), 0);
  codebook.collect(test::matrix(hidden, 4, 2), std::vector<int32_t>{1, 1, 1, 1}, statistics);
  EXPECT_EQ(statistics, (std::vector<int64_t>{0, 4, 0, 0, 0, -(int64_t{1} << 40)}));
}

TEST(Codebook, ASumOfZeroKeepsTheCodeword) {
  Codebook codebook({.codewords = 1, .dim = 2, .decay = 0.5f});
  const std::vector<float> first = {1.0f, 0.0f};
  codebook.initialise(test::matrix(first, 1, 2), 1.0f);
  const std::vector<float> opposite = {-1.0f, 0.0f};
  std::vector<int64_t> statistics(codebook.statistics_size(), 0);
  codebook.collect(test::matrix(opposite, 1, 2), std::vector<int32_t>{0}, statistics);
  std::vector<int32_t> dead;
  codebook.update(statistics, dead);
  EXPECT_EQ(codebook.sums().data[0], 0.0f);
  EXPECT_EQ(codebook.codewords().data[0], 1.0f);
  EXPECT_EQ(codebook.codewords().data[1], 0.0f);
}

TEST(Codebook, DeadCodewordsAreFoundAndReplaced) {
  Codebook codebook({.codewords = 4, .dim = 3, .decay = 0.5f, .dead_threshold = 1.0f});
  test::Random random(3);
  const auto first = random.normals(12);
  codebook.initialise(test::matrix(first, 4, 3), 1.5f);
  // n becomes 0.75 + 0.5 * tokens: 0 tokens die, 1 token lives.
  std::vector<int64_t> statistics(codebook.statistics_size(), 0);
  const auto hidden = random.normals(6);
  codebook.collect(test::matrix(hidden, 2, 3), std::vector<int32_t>{1, 1}, statistics);
  std::vector<int32_t> dead;
  codebook.update(statistics, dead);
  EXPECT_EQ(dead, (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(codebook.counts()[1], 1.75f);

  const std::vector<float> before(codebook.codewords().row(1), codebook.codewords().row(1) + 3);
  const std::vector<float> tokens = {0.0f, 5.0f, 0.0f, 0.0f, 0.0f, 0.0f, 2.0f, 0.0f, 0.0f};
  codebook.replace(dead, test::matrix(tokens, 3, 3));
  const std::vector<float> expected = {0, 1, 0, before[0], before[1], before[2], 1, 0, 0, 1, 0, 0};
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(codebook.codewords().data[i], expected[i]);
  for (const int32_t g : dead) {
    EXPECT_EQ(codebook.counts()[g], 1.0f);
    for (int64_t k = 0; k < 3; ++k) {
      EXPECT_EQ(codebook.sums()(g, k), codebook.codewords()(g, k));
    }
  }
  EXPECT_EQ(codebook.counts()[1], 1.75f);
}

TEST(Codebook, ThresholdIsExclusive) {
  Codebook codebook({.codewords = 1, .dim = 1, .decay = 1.0f, .dead_threshold = 1.0f});
  const std::vector<float> first = {1.0f};
  codebook.initialise(test::matrix(first, 1, 1), 1.0f);
  std::vector<int64_t> statistics(2, 0);
  std::vector<int32_t> dead;
  codebook.update(statistics, dead);
  EXPECT_TRUE(dead.empty());
}

TEST(Codebook, WrongShapesAreErrors) {
  Codebook codebook({.codewords = 2, .dim = 3});
  std::vector<int64_t> statistics(7);
  std::vector<int32_t> dead;
  EXPECT_THROW(codebook.update(statistics, dead), Error);
  statistics.resize(8);
  statistics[0] = int64_t{1} << 50;  // would have overflowed
  EXPECT_THROW(codebook.update(statistics, dead), Error);
  EXPECT_THROW(Codebook({.codewords = 0, .dim = 3}), Error);
}

}  // namespace
}  // namespace airmoe::router
