#include "comm/base/random.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "comm/base/error.hpp"

namespace airmoe {
namespace {

// Philox4x32-10 as published (Salmon et al. 2011), independent of the library that we use.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> x, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * x[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ x[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return x;
}

TEST(Random, PhiloxKnownAnswers) {
  // The published test vectors, then our use of them.
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  const RandomStream stream(0x299f31d0a4093822, Purpose::probe, 3, 4, 5);
  const auto words = philox({8, 3, 4, 5}, {0xa4093822, 0x299f31d0});
  EXPECT_EQ(stream.key(), (std::array<uint32_t, 2>{words[0], words[1]}));
  EXPECT_EQ(stream.block(1, 2, 3, 4), philox({1, 2, 3, 4}, stream.key()));
}

TEST(Random, EveryPartOfTheStreamNameMatters) {
  std::set<std::array<uint32_t, 2>> keys;
  keys.insert(RandomStream(1, Purpose::probe, 0, 0, 0).key());
  keys.insert(RandomStream(2, Purpose::probe, 0, 0, 0).key());
  keys.insert(RandomStream(uint64_t{1} << 32 | 1, Purpose::probe, 0, 0, 0).key());
  keys.insert(RandomStream(1, Purpose::test_data, 0, 0, 0).key());
  keys.insert(RandomStream(1, Purpose::probe, 1, 0, 0).key());
  keys.insert(RandomStream(1, Purpose::probe, 0, 1, 0).key());
  keys.insert(RandomStream(1, Purpose::probe, 0, 0, 1).key());
  EXPECT_EQ(keys.size(), 7u);
  EXPECT_EQ(RandomStream(9, Purpose::probe, 1, 2, 3).key(),
            RandomStream(9, Purpose::probe, 1, 2, 3).key());
}

TEST(Random, UniformFillsTheUnitInterval) {
  const RandomStream stream(11, Purpose::test_data);
  constexpr int kDraws = 200000;
  std::vector<int> cells(100);
  double sum = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u =
        stream.uniform(i + (uint64_t{1} << 32) - kDraws / 2);  // across a word boundary
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    ++cells[static_cast<size_t>(u * 100)];
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 4 * std::sqrt(1.0 / 12 / kDraws));
  double chi_square = 0;  // 99 degrees of freedom: mean 99, standard deviation 14
  for (const int n : cells) chi_square += (n - 2000.0) * (n - 2000.0) / 2000.0;
  EXPECT_LT(chi_square, 160);
  EXPECT_GT(chi_square, 50);
}

TEST(Random, NormalMoments) {
  const RandomStream stream(12, Purpose::parameter_init);
  constexpr int64_t kCount = 400000;
  std::vector<float> x(kCount);
  stream.fill_normal(x.data(), kCount, 0, 2.0f);
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, neighbours = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i] / 2.0;
    m1 += v, m2 += v * v, m3 += v * v * v, m4 += v * v * v * v;
    if (i + 1 < x.size()) neighbours += v * x[i + 1] / 2.0;
  }
  const double root = std::sqrt(double{kCount});
  EXPECT_NEAR(m1 / kCount, 0, 4 / root);
  EXPECT_NEAR(m2 / kCount, 1, 4 * std::sqrt(2.0) / root);
  EXPECT_NEAR(m3 / kCount, 0, 4 * std::sqrt(15.0) / root);
  EXPECT_NEAR(m4 / kCount, 3, 4 * std::sqrt(96.0) / root);
  EXPECT_NEAR(neighbours / kCount, 0, 4 / root);
  const auto beyond = std::count_if(x.begin(), x.end(), [](float v) { return std::abs(v) > 6; });
  EXPECT_NEAR(static_cast<double>(beyond) / kCount, 0.0027, 4 * std::sqrt(0.0027) / root);
}

TEST(Random, NormalDependsOnTheGlobalIndexOnly) {
  const RandomStream stream(13, Purpose::parameter_init);
  std::vector<float> whole(101);
  const uint64_t origin = (uint64_t{1} << 33) - 50;
  stream.fill_normal(whole.data(), 101, origin, 0.5f);
  for (uint64_t begin = 0; begin < 20; ++begin) {
    for (int64_t count = 0; count < 20; ++count) {
      std::vector<float> part(static_cast<size_t>(count) + 1, 77.0f);
      stream.fill_normal(part.data(), count, origin + begin, 0.5f);
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        ASSERT_EQ(part[i], whole[begin + i]);
      }
      ASSERT_EQ(part.back(), 77.0f);
    }
  }
}

// Box-Muller with the C library's functions in double precision.
TEST(Random, NormalsAreThoseOfTheCLibrary) {
  const RandomStream stream(14, Purpose::parameter_init);
  constexpr int64_t kCount = 4000000;
  constexpr float kScale = 0.0625f;
  constexpr uint64_t kBegin = (uint64_t{1} << 33) - kCount / 2;
  const auto unit_interval = [](uint32_t a, uint32_t b) {
    return static_cast<double>(uint64_t{a} << 21 | b >> 11) * 0x1p-53;
  };
  std::vector<float> x(kCount);
  stream.fill_normal(x.data(), kCount, kBegin, kScale);
  int different = 0;
  for (int64_t i = 0; i < kCount; i += 2) {
    const uint64_t pair = (kBegin + static_cast<uint64_t>(i)) / 2;
    const auto words =
        philox({static_cast<uint32_t>(pair), static_cast<uint32_t>(pair >> 32), 0, 0x6e6f726d},
               stream.key());
    const double radius = std::sqrt(-2.0 * std::log(1.0 - unit_interval(words[0], words[1])));
    const double angle = 2.0 * std::numbers::pi * unit_interval(words[2], words[3]);
    const double normal[2] = {kScale * (radius * std::cos(angle)),
                              kScale * (radius * std::sin(angle))};
    for (int64_t j = 0; j < 2; ++j) {
      const float got = x[static_cast<size_t>(i + j)];
      different += got == static_cast<float>(normal[j]) ? 0 : 1;
      ASSERT_NEAR(got, normal[j], 1e-7 * std::abs(normal[j]))
          << "index " << kBegin << " + " << i + j;
    }
  }
  EXPECT_LE(different, 1);  // libraries differ by units in the last place of double precision
}

TEST(Random, NormalsAreTheSameOnEveryInstructionSet) {
  const RandomStream stream(15, Purpose::parameter_init);
  const auto draw = [&] {
    std::vector<float> x(100001);
    stream.fill_normal(x.data(), std::ssize(x), 7, 0.3f);
    return x;
  };
  const std::vector<float> expected = draw();
  int64_t targets = hwy::SupportedTargets();
  while (targets != 0) {
    const int64_t target = targets & -targets;
    targets &= targets - 1;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    EXPECT_EQ(draw(), expected) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(Random, PermutationIsABijection) {
  for (const uint64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097}) {
    const RandomPermutation permutation(RandomStream(size, Purpose::sample_order), size);
    std::vector<bool> seen(size);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t j = permutation(i);
      ASSERT_LT(j, size);
      ASSERT_FALSE(seen[j]) << "size " << size << ": " << j << " twice";
      seen[j] = true;
    }
  }
  const RandomPermutation empty(RandomStream(1, Purpose::sample_order), 0);
  EXPECT_THROW(empty(0), Error);
  const RandomPermutation large(RandomStream(1, Purpose::sample_order), uint64_t{1} << 40);
  EXPECT_LT(large((uint64_t{1} << 40) - 1), uint64_t{1} << 40);
}

TEST(Random, PermutationsOfThreeAreEquallyLikely) {
  std::vector<int> seen(27);
  constexpr int kTrials = 12000;
  for (uint32_t trial = 0; trial < kTrials; ++trial) {
    const RandomPermutation p(RandomStream(5, Purpose::sample_order, trial), 3);
    ++seen[p(0) * 9 + p(1) * 3 + p(2)];
  }
  int different = 0;
  for (const int n : seen) {
    if (n == 0) continue;
    ++different;
    EXPECT_NEAR(n, kTrials / 6.0, 5 * std::sqrt(kTrials / 6.0));
  }
  EXPECT_EQ(different, 6);
}

TEST(Random, PermutationMovesElementsFar) {
  constexpr uint64_t kSize = 10000;
  const RandomPermutation p(RandomStream(6, Purpose::sample_order), kSize);
  double fixed = 0, cross = 0;
  for (uint64_t i = 0; i < kSize; ++i) {
    fixed += p(i) == i ? 1 : 0;
    cross += (static_cast<double>(i) / kSize - 0.5) * (static_cast<double>(p(i)) / kSize - 0.5);
  }
  EXPECT_LT(fixed, 8);  // Poisson of mean 1
  EXPECT_NEAR(cross / kSize * 12, 0, 0.04);
}

}  // namespace
}  // namespace airmoe
