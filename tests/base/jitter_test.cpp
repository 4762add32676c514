#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "comm/base/random.hpp"

namespace airmoe {
namespace {

std::vector<int32_t> ids(int32_t count, int32_t stride = 1) {
  std::vector<int32_t> id(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) id[static_cast<size_t>(i)] = i * stride;
  return id;
}

std::vector<float> jitter(const std::vector<int32_t>& id, float stddev, const RandomStream& stream,
                          uint32_t b, uint32_t c) {
  std::vector<float> x(id.size());
  add_jitter(x.data(), id.data(), static_cast<int64_t>(id.size()), stddev, stream, b, c);
  return x;
}

double distribution(double z) {
  return 0.5 * std::erfc(-z / std::numbers::sqrt2);
}

// The definition: the normal quantile at the middle of the cell that the 16-bit draw names.
TEST(Jitter, IsTheInverseTransformOfTheDraw) {
  const RandomStream stream(21, Purpose::jitter_score, 3, 1, 2);
  const std::vector<int32_t> id = ids(20000, 13);
  const std::vector<float> x = jitter(id, 1.0f, stream, 17, 4);
  for (size_t i = 0; i < id.size(); ++i) {
    const auto words = stream.block(static_cast<uint32_t>(id[i]) / 8, 17, 4);
    const uint32_t lane = static_cast<uint32_t>(id[i]) % 8;
    const uint32_t draw = words[lane / 2] >> (lane % 2 * 16) & 0xFFFF;
    const double cell =
        draw < 32768 ? 0.5 + (draw + 0.5) / 65536 : 0.5 - (draw - 32768 + 0.5) / 65536;
    ASSERT_NEAR(distribution(x[i]), cell, 3e-8) << "id " << id[i];
  }
}

TEST(Jitter, Moments) {
  const RandomStream stream(22, Purpose::jitter_score);
  double m1 = 0, m2 = 0, m4 = 0, count = 0, largest = 0, lanes = 0;
  for (uint32_t b = 0; b < 50; ++b) {
    const std::vector<float> x = jitter(ids(8192), 1.0f, stream, b, 0);
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      m1 += v, m2 += v * v, m4 += v * v * v * v, count += 1;
      largest = std::max(largest, std::abs(v));
      lanes += v * x[i ^ 1];  // neighbours share a word
    }
  }
  const double root = std::sqrt(count);
  EXPECT_NEAR(m1 / count, 0, 4 / root);
  EXPECT_NEAR(m2 / count, 1, 4 * std::sqrt(2.0) / root);
  EXPECT_NEAR(m4 / count, 3, 4 * std::sqrt(96.0) / root);
  EXPECT_NEAR(lanes / count, 0, 4 * std::sqrt(2.0) / root);
  EXPECT_GT(largest, 4.0);
  EXPECT_LT(largest, kJitterBound);
}

TEST(Jitter, BoundHoldsInTheLastCell) {
  EXPECT_LT(1.0 - distribution(kJitterBound), 0.5 / 65536);
}

TEST(Jitter, ValueDependsOnTheIdOnly) {
  const RandomStream stream(23, Purpose::jitter_shortlist, 9);
  const std::vector<int32_t> all = ids(3000);
  const std::vector<float> whole = jitter(all, 0.25f, stream, 5, 6);
  // Any subset, any order, any length.
  std::mt19937 random(1);
  std::vector<int32_t> shuffled = all;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  for (size_t count : {1u, 2u, 7u, 8u, 9u, 63u, 255u, 256u, 257u, 1000u}) {
    const std::vector<int32_t> some(shuffled.begin(), shuffled.begin() + static_cast<long>(count));
    const std::vector<float> x = jitter(some, 0.25f, stream, 5, 6);
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(x[i], whole[static_cast<size_t>(some[i])]);
  }
}

TEST(Jitter, CountersAndStreamsMatter) {
  const RandomStream stream(24, Purpose::jitter_score);
  const std::vector<int32_t> id = ids(64);
  const std::vector<float> x = jitter(id, 1.0f, stream, 1, 2);
  EXPECT_NE(x, jitter(id, 1.0f, stream, 2, 2));
  EXPECT_NE(x, jitter(id, 1.0f, stream, 1, 3));
  EXPECT_NE(x, jitter(id, 1.0f, RandomStream(24, Purpose::jitter_score, 1), 1, 2));
  EXPECT_EQ(x, jitter(id, 1.0f, stream, 1, 2));
}

TEST(Jitter, EveryInstructionSetGivesTheSameBits) {
  const RandomStream stream(26, Purpose::jitter_score, 1);
  const std::vector<int32_t> id = ids(777, 37);
  const std::vector<float> expected = jitter(id, 0.3f, stream, 1, 2);
  int64_t targets = hwy::SupportedTargets();
  while (targets != 0) {
    const int64_t target = targets & -targets;
    targets &= targets - 1;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    EXPECT_EQ(jitter(id, 0.3f, stream, 1, 2), expected) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(Jitter, AddsToWhatIsThere) {
  const RandomStream stream(25, Purpose::jitter_score);
  const std::vector<int32_t> id = ids(100, 1000000);  // up to 99 million, far beyond 16 bits
  const std::vector<float> noise = jitter(id, 0.5f, stream, 0, 0);
  std::vector<float> x(100, 8.0f), unchanged(100, 8.0f);
  add_jitter(x.data(), id.data(), 100, 0.5f, stream, 0, 0);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(x[i], 8.0f + noise[i]);
  add_jitter(unchanged.data(), id.data(), 100, 0.0f, stream, 0, 0);
  EXPECT_EQ(unchanged, std::vector<float>(100, 8.0f));
  add_jitter(nullptr, nullptr, 0, 1.0f, stream, 0, 0);
}

}  // namespace
}  // namespace airmoe
