#include "router/metrics.hpp"

#include <gtest/gtest.h>

#include "router/data.hpp"

namespace airmoe::router {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Metrics, LogSums) {
  const std::vector<float> z = {1.0f, 2.0f, 3.0f};
  EXPECT_NEAR(log_sum_exp(z), std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0)), 1e-14);
  const std::vector<float> large = {1000.0f, 1000.0f};
  EXPECT_NEAR(log_sum_exp(large), 1000.0 + std::log(2.0), 1e-12);
  EXPECT_EQ(log_sum_exp({}), -kInfinity);
  EXPECT_NEAR(log_add_exp(2.0, -1.0), std::log(std::exp(2.0) + std::exp(-1.0)), 1e-14);
  EXPECT_EQ(log_add_exp(-kInfinity, 5.0), 5.0);
  EXPECT_EQ(log_add_exp(-kInfinity, -kInfinity), -kInfinity);
  EXPECT_NEAR(log_subtract_exp(2.0, -1.0), std::log(std::exp(2.0) - std::exp(-1.0)), 1e-14);
  EXPECT_EQ(log_subtract_exp(2.0, 2.0), -kInfinity);
  EXPECT_EQ(log_subtract_exp(2.0, -kInfinity), 2.0);
}

TEST(Metrics, Overlap) {
  const std::vector<int32_t> exact = {4, 1, 9, 7}, selected = {7, 2, 4, 5};
  EXPECT_EQ(overlap(selected, exact), 0.5);
  EXPECT_EQ(overlap(exact, exact), 1.0);
  EXPECT_EQ(overlap({}, exact), 0.0);
  EXPECT_EQ(overlap({}, {}), 1.0);
}

TEST(Metrics, TopKMassRatio) {
  const std::vector<float> exact = {3.0f, 2.0f}, selected = {3.0f, 1.0f};
  EXPECT_NEAR(top_k_mass_ratio(selected, exact),
              (std::exp(3.0) + std::exp(1.0)) / (std::exp(3.0) + std::exp(2.0)), 1e-14);
  EXPECT_EQ(top_k_mass_ratio(exact, exact), 1.0);
}

TEST(Metrics, MassRecallAndItsBound) {
  // Random unit centroids, shortlists of the best by codeword: the bound must hold, and be exact
  // for a token that lies on its codeword.
  test::Random random(1);
  const int64_t experts = 60, d = 5, listed = 20;
  std::vector<float> centroid = random.normals(experts * d), codeword = random.normals(d);
  const auto normalise = [&](float* x) {
    const double norm = std::sqrt(test::dot(x, x, d));
    for (int64_t k = 0; k < d; ++k) x[k] = static_cast<float>(x[k] / norm);
  };
  for (int64_t e = 0; e < experts; ++e) normalise(&centroid[e * d]);
  normalise(codeword.data());
  std::vector<double> by_codeword(experts);
  for (int64_t e = 0; e < experts; ++e) {
    by_codeword[e] = test::dot(codeword.data(), &centroid[e * d], d);
  }
  const std::vector<int32_t> order = test::ranking(by_codeword);
  for (const double beside : {0.0, 0.1, 1.0, 4.0}) {
    std::vector<float> h(d);
    for (int64_t k = 0; k < d; ++k) {
      h[k] = static_cast<float>(6.0 * codeword[k] + beside * random.normal());
    }
    const CodewordDistance distance = codeword_distance(h, codeword);
    double inside = 0.0, all = 0.0, outside = 0.0, squares = 0.0;
    for (int64_t i = 0; i < experts; ++i) {
      const double z = test::dot(h.data(), &centroid[order[i] * d], d);
      all += std::exp(z);
      if (i < listed) inside += std::exp(z);
      if (i >= listed) outside += std::exp(distance.alpha * by_codeword[order[i]]);
    }
    for (int64_t k = 0; k < d; ++k) {
      const double rest = h[k] - distance.alpha * codeword[k];
      squares += rest * rest;
    }
    EXPECT_NEAR(distance.alpha, test::dot(h.data(), codeword.data(), d), 1e-12);
    EXPECT_NEAR(distance.eps, std::sqrt(squares), 1e-12);
    const double recall = mass_recall(std::log(inside), std::log(all));
    EXPECT_NEAR(recall, inside / all, 1e-14);
    const double bound = mass_recall_bound(std::log(inside), std::log(outside), distance.eps);
    EXPECT_NEAR(bound, inside / (inside + std::exp(distance.eps) * outside), 1e-12);
    EXPECT_LE(bound, recall + 1e-6);
    if (beside == 0.0) {
      EXPECT_NEAR(bound, recall, 1e-5);
    }
  }
  EXPECT_EQ(mass_recall_bound(3.0, -kInfinity, 100.0), 1.0);  // the list is everything
  EXPECT_EQ(mass_recall_bound(3.0, 2.0, 1e6), 0.0);           // no overflow
}

TEST(Metrics, UsageOfEvenAndUnevenExperts) {
  const std::vector<int64_t> even(8, 5), one = {0, 12, 0, 0}, none(3, 0);
  EXPECT_EQ(dead_fraction(usage_of(even)), 0.0);
  EXPECT_NEAR(entropy_fraction(usage_of(even)), 1.0, 1e-14);
  EXPECT_EQ(max_violation(usage_of(even)), 0.0);
  EXPECT_EQ(dead_fraction(usage_of(one)), 0.75);
  EXPECT_NEAR(entropy_fraction(usage_of(one)), 0.25, 1e-14);
  EXPECT_EQ(max_violation(usage_of(one)), 3.0);
  EXPECT_EQ(dead_fraction(usage_of(none)), 1.0);
  EXPECT_EQ(entropy_fraction(usage_of(none)), 0.0);
  EXPECT_EQ(max_violation(usage_of(none)), 0.0);
  EXPECT_EQ(dead_fraction(usage_of({})), 0.0);
}

TEST(Metrics, UsageCombinesOverRanks) {
  test::Random random(2);
  std::vector<int64_t> counts(100);
  double entropy = 0.0, total = 0.0;
  for (auto& n : counts) n = std::max<int64_t>(0, random.integer(-20, 50));
  for (const int64_t n : counts) total += static_cast<double>(n);
  for (const int64_t n : counts) {
    const double share = static_cast<double>(n) / total;
    if (n > 0) entropy -= share * std::log(share);
  }
  const std::span<const int64_t> all(counts);
  const Usage usage = combine(combine(usage_of(all.first(30)), usage_of(all.subspan(30, 0))),
                              usage_of(all.subspan(30)));
  EXPECT_NEAR(entropy_fraction(usage), std::exp(entropy) / 100.0, 1e-12);
  EXPECT_EQ(dead_fraction(usage), dead_fraction(usage_of(all)));
  EXPECT_NEAR(
      max_violation(usage),
      static_cast<double>(*std::max_element(counts.begin(), counts.end())) * 100.0 / total - 1.0,
      1e-12);
}

}  // namespace
}  // namespace airmoe::router
