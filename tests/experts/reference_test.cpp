// The specification itself: hand-computed values, and its gradients against central differences of
// its own forward in double precision.

#include <cmath>

#include <gtest/gtest.h>

#include "experts/expert_case.hpp"

namespace airmoe::experts::testing {
namespace {

TEST(Reference, ActivationsAtKnownPoints) {
  using reference::activation_value;
  EXPECT_NEAR(activation_value(ExpertActivation::gelu, 1.0), 0.8413447460685429, 1e-15);
  EXPECT_NEAR(activation_value(ExpertActivation::gelu, -2.0), -0.04550026389635842, 1e-15);
  EXPECT_NEAR(activation_value(ExpertActivation::silu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_EQ(activation_value(ExpertActivation::relu, -3.0), 0.0);
  EXPECT_EQ(activation_value(ExpertActivation::relu, 3.0), 3.0);
}

TEST(Reference, ForwardByHand) {
  // One token h = (2, 1), two relu experts of two hidden units each, expert 1 selected.
  const double hidden[] = {2, 1};
  const double up[] = {9, 9, 9, 9, 1, 3, 4, -1};      // <h, u> of expert 1: 5 and 7
  const double down[] = {9, 9, 9, 9, 10, 0, 0, 100};  // 5 * (10, 0) + 7 * (0, 100)
  const int64_t offset[] = {0, 1};
  const int32_t position[] = {1};
  const double gate[] = {0.5};
  const reference::Table table{{up, 4, 2}, {down, 4, 2}, {}, 2, ExpertActivation::relu};
  const std::vector<double> y =
      reference::forward(table, {hidden, 1, 2}, {1, offset, position, nullptr}, gate);
  EXPECT_EQ(y, (std::vector<double>{25, 350}));
}

TEST(Reference, SwigluByHand) {
  const double hidden[] = {1}, up[] = {3}, gate_proj[] = {2}, down[] = {5}, gate[] = {0.25};
  const int64_t offset[] = {0, 1};
  const int32_t position[] = {0};
  const reference::Table table{
      {up, 1, 1}, {down, 1, 1}, {gate_proj, 1, 1}, 1, ExpertActivation::swiglu};
  const std::vector<double> y =
      reference::forward(table, {hidden, 1, 1}, {1, offset, position, nullptr}, gate);
  EXPECT_NEAR(y[0], 0.25 * 5 * 3 * 2 / (1 + std::exp(-2.0)), 1e-14);
}

TEST(Reference, GradientsMatchCentralDifferences) {
  constexpr double kStep = 1e-5, kTolerance = 1e-8;
  for (ExpertActivation activation : kActivations) {
    SCOPED_TRACE(name_of(activation));
    const Case c({.tokens = 3,
                  .dim = 4,
                  .m = 2,
                  .activation = activation,
                  .candidates = 4,
                  .local_experts = 5});
    Exact exact(c);
    const reference::Gradients gradients = exact.backward();
    int64_t compared = 0;
    const auto compare = [&](std::vector<double>& x, std::size_t first,
                             const std::vector<double>& gradient) {
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        const double original = x[first + i];
        x[first + i] = original + kStep;
        const double above = exact.loss();
        x[first + i] = original - kStep;
        const double below = exact.loss();
        x[first + i] = original;
        EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), kTolerance) << "element " << i;
        ++compared;
      }
    };
    compare(exact.up, 0, gradients.up);
    compare(exact.down, 0, gradients.down);
    compare(exact.gate_proj, 0, gradients.gate_proj);
    compare(exact.hidden, 0, gradients.hidden);
    compare(exact.gate, Case::kJunkPairs, gradients.gate);
    EXPECT_GT(compared, 2 * 5 * 2 * 4 + 3 * 4);
  }
}

}  // namespace
}  // namespace airmoe::experts::testing
