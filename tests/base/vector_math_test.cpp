#include "comm/base/vector_math.hpp"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numbers>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

namespace airmoe {
namespace {

constexpr Activation kActivations[] = {Activation::gelu, Activation::silu, Activation::relu};

double value_of(Activation f, double x) {
  switch (f) {
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::silu:
      return x / (1.0 + std::exp(-x));
    case Activation::relu:
      return x > 0 ? x : 0;
  }
  return 0;
}

double slope_of(Activation f, double x) {
  switch (f) {
    case Activation::gelu:
      return 0.5 * std::erfc(-x / std::numbers::sqrt2) +
             x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
    case Activation::silu: {
      const double s = 1.0 / (1.0 + std::exp(-x));
      return s * (1.0 + x * (1.0 - s));
    }
    case Activation::relu:
      return x > 0 ? 1 : 0;
  }
  return 0;
}

// About 400,000 points, dense near zero and wide outside.
std::vector<float> points(double limit) {
  std::vector<float> x;
  for (int i = -100000; i <= 100000; ++i) x.push_back(static_cast<float>(limit * i / 100000));
  for (int i = -100000; i <= 100000; ++i) x.push_back(static_cast<float>(2.0 * i / 100000));
  return x;
}

double worst_relative(const std::vector<float>& got, const std::vector<float>& x,
                      const std::function<double(double)>& exact, double smallest) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(x[i]);
    if (std::abs(want) < smallest) continue;
    worst = std::max(worst, std::abs(got[i] - want) / std::abs(want));
  }
  return worst;
}

double worst_absolute(const std::vector<float>& got, const std::vector<float>& x,
                      const std::function<double(double)>& exact) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(got[i] - exact(x[i])));
  return worst;
}

TEST(VectorMath, ExpIsAccurateToAFewUlp) {
  const std::vector<float> x = points(87.0);
  std::vector<float> out(x.size());
  vector_exp(x.data(), 0.0f, out.data(), static_cast<int64_t>(x.size()));
  const auto exact = [](double v) { return std::exp(v); };
  EXPECT_LT(worst_relative(out, x, exact, 1e-37), 2e-7);
  // A shift is subtracted in single precision, as in a softmax.
  vector_exp(x.data(), 1.5f, out.data(), static_cast<int64_t>(x.size()));
  const auto shifted = [](double v) {
    return std::exp(static_cast<double>(static_cast<float>(v) - 1.5f));
  };
  EXPECT_LT(worst_relative(out, x, shifted, 1e-37), 2e-7);
}

TEST(VectorMath, ExpAtTheEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  const float x[] = {-inf,
                     -1000.0f,
                     -104.1f,
                     0.0f,
                     -0.0f,
                     88.72f,
                     88.73f,
                     104.5f,
                     1e30f,
                     inf,
                     std::numeric_limits<float>::quiet_NaN()};
  float y[11];
  vector_exp(x, 0.0f, y, 11);
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[3], 1.0f);
  EXPECT_EQ(y[4], 1.0f);
  EXPECT_NEAR(y[5] / std::exp(static_cast<double>(x[5])), 1.0, 2e-7);
  for (int i = 6; i <= 9; ++i) EXPECT_EQ(y[i], inf) << "x = " << x[i];
  EXPECT_TRUE(std::isnan(y[10]));  // a training run that has gone wrong must stay visible
}

TEST(VectorMath, ActivationsAreAccurate) {
  const std::vector<float> x = points(30.0);
  std::vector<float> value(x.size()), slope(x.size());
  for (const Activation f : kActivations) {
    activation_with_slope(f, x.data(), value.data(), slope.data(), static_cast<int64_t>(x.size()));
    const auto exact = [f](double v) { return value_of(f, v); };
    const auto exact_slope = [f](double v) { return slope_of(f, v); };
    const int name = static_cast<int>(f);
    // Relative: also where gelu is 1e-30. Slopes cross zero, so their error is absolute.
    EXPECT_LT(worst_relative(value, x, exact, 1e-37), 6e-7) << "activation " << name;
    EXPECT_LT(worst_absolute(slope, x, exact_slope), 2.5e-7) << "activation " << name;
  }
}

TEST(VectorMath, SlopeIsTheDerivative) {
  for (const Activation f : kActivations) {
    for (double x = -6.03; x < 6; x += 0.17) {
      const double step = 1e-5;
      const double finite = (value_of(f, x + step) - value_of(f, x - step)) / (2 * step);
      const float at = static_cast<float>(x);
      float value, slope;
      activation_with_slope(f, &at, &value, &slope, 1);
      EXPECT_NEAR(slope, finite, 1e-6) << "activation " << static_cast<int>(f) << " at " << x;
    }
  }
}

TEST(VectorMath, SpecialValues) {
  const float x[] = {0.0f, -0.0f, -50.0f, 50.0f, std::numeric_limits<float>::quiet_NaN()};
  float value[5], slope[5];
  activation_with_slope(Activation::relu, x, value, slope, 5);
  EXPECT_EQ(slope[0], 0.0f);
  EXPECT_EQ(slope[1], 0.0f);
  for (const Activation f : kActivations) {
    activation_with_slope(f, x, value, slope, 5);
    EXPECT_EQ(value[0], 0.0f);
    EXPECT_NEAR(value[2], 0.0f, 1e-19);
    EXPECT_EQ(value[3], 50.0f);
    EXPECT_NEAR(slope[2], 0.0f, 1e-19);
    EXPECT_EQ(slope[3], 1.0f);
    EXPECT_TRUE(std::isnan(value[4])) << "activation " << static_cast<int>(f);
  }
}

// The result of an element must not depend on where it lies, how long the array is, whether the
// slope is asked for, or whether the call works in place.
TEST(VectorMath, PositionDoesNotMatter) {
  std::vector<float> x(200);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(double(i))) * 7.0f;
  std::vector<float> whole(x.size()), slope(x.size());
  for (const Activation f : kActivations) {
    activation_with_slope(f, x.data(), whole.data(), slope.data(), 200);
    for (int64_t begin = 0; begin < 40; ++begin) {
      for (int64_t count = 0; count <= 40; count += 3) {
        std::vector<float> part(x.begin() + begin, x.begin() + begin + count + 1);
        const float after = part.back();
        activation_forward(f, part.data(), part.data(), count);
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + begin, static_cast<size_t>(count) * 4), 0)
            << "begin " << begin << " count " << count;
        ASSERT_EQ(part.back(), after);  // nothing beyond the end is written
      }
    }
  }
  vector_exp(x.data(), 0.5f, whole.data(), 200);
  for (int64_t i = 0; i < 200; ++i) {
    float one;
    vector_exp(&x[static_cast<size_t>(i)], 0.5f, &one, 1);
    ASSERT_EQ(one, whole[static_cast<size_t>(i)]) << i;
  }
}

// Every instruction set of this processor gives the same accuracy.
TEST(VectorMath, EveryInstructionSetIsAccurate) {
  const std::vector<float> x = points(12.0);
  std::vector<float> value(x.size());
  int64_t targets = hwy::SupportedTargets();
  while (targets != 0) {
    const int64_t target = targets & -targets;
    targets &= targets - 1;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (const Activation f : kActivations) {
      activation_forward(f, x.data(), value.data(), static_cast<int64_t>(x.size()));
      const auto exact = [f](double v) { return value_of(f, v); };
      EXPECT_LT(worst_absolute(value, x, exact), 2e-6) << hwy::TargetName(target);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace
}  // namespace airmoe
