#include "scheduler/cuda/gradient_buckets.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace airmoe::scheduler::cuda {
namespace {

TEST(GradientBuckets, AreWholeLayersFromTheTop) {
  constexpr int64_t kMega = int64_t{1} << 20;
  const std::vector<int64_t> begin = {2 * kMega, 4 * kMega, 7 * kMega, 9 * kMega};
  const auto all = [](std::span<const int64_t> layers, int64_t size) {
    std::vector<std::vector<int64_t>> out;
    for (const auto& b : gradient_buckets(layers, size)) {
      out.push_back({b.layer, b.begin, b.end});
    }
    return out;
  };
  using Rows = std::vector<std::vector<int64_t>>;
  EXPECT_EQ(all(begin, 20 * kMega),
            (Rows{{3, 9 * kMega, 20 * kMega}, {1, 4 * kMega, 9 * kMega}, {-1, 0, 4 * kMega}}));
  const std::vector<int64_t> few = {8, 16, 24};
  EXPECT_EQ(all(few, 32), (Rows{{2, 24, 32}, {1, 16, 24}, {0, 8, 16}, {-1, 0, 8}}));
  EXPECT_EQ(all({}, 16), (Rows{{-1, 0, 16}}));
  EXPECT_EQ(all({}, 0), Rows{});
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
