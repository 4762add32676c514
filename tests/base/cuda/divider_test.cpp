#include "comm/base/cuda/divider.hpp"

#include <random>

#include <gtest/gtest.h>

namespace airmoe::cuda {
namespace {

TEST(Divider, IsExactInItsRange) {
  std::mt19937 random(1);
  const auto expect = [](int x, int divisor) {
    const Divider by(divisor);
    ASSERT_EQ(by.divide(x), x / divisor) << x << " / " << divisor;
    ASSERT_EQ(by.remainder(x), x % divisor) << x << " % " << divisor;
  };
  const int last = static_cast<int>(Divider::kLimit) - 1;
  for (int i = 0; i < 200000; ++i) {
    const int divisor = std::uniform_int_distribution<int>(1, i % 2 == 0 ? 65536 : 300)(random);
    const int multiple = last / divisor * divisor;
    for (const int x : {0, divisor - 1, divisor, multiple - 1, multiple, last}) expect(x, divisor);
    expect(std::uniform_int_distribution<int>(0, last)(random), divisor);
  }
}

}  // namespace
}  // namespace airmoe::cuda
