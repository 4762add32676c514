// Both execution paths against the double-precision specification, against each other, and against
// finite differences.

#include <cmath>
#include <tuple>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "comm/base/error.hpp"
#include "experts/expert_case.hpp"

namespace airmoe::experts::testing {
namespace {

/// Sums of up to a few hundred products of numbers around 1 in fp32; relative to the largest value
/// of the array, because small elements are differences of large ones.
constexpr double kTolerance = 5e-6;

template <class A, class B>
void expect_close(const std::vector<A>& actual, const std::vector<B>& expected, double start,
                  const char* what, double tolerance = kTolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double scale = 1;
  for (B value : expected) scale = std::max(scale, std::abs(static_cast<double>(value)));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i] + start, tolerance * scale) << what << " element " << i;
  }
}

/// The part of a per-pair array that belongs to real pairs.
template <class T>
std::vector<T> real_pairs(const std::vector<T>& x, int64_t per_pair = 1) {
  return {x.begin() + Case::kJunkPairs * per_pair, x.end()};
}

void expect_matches_reference(const Case& c, const Outcome& out) {
  const Exact exact(c);
  const reference::Gradients gradients = exact.backward();
  expect_close(out.y, exact.forward(), Outcome::kStart, "y");
  expect_close(out.d_hidden, gradients.hidden, Outcome::kStart, "d_hidden");
  expect_close(out.d_up, gradients.up, Outcome::kStart, "d_up");
  expect_close(out.d_down, gradients.down, Outcome::kStart, "d_down");
  expect_close(out.d_gate_proj, gradients.gate_proj, Outcome::kStart, "d_gate_proj");
  expect_close(real_pairs(out.d_gate), gradients.gate, 0, "d_gate");
  for (int64_t p = 0; p < Case::kJunkPairs; ++p) EXPECT_EQ(out.d_gate[p], -7.0f);
}

void expect_same(const Case& c, const Outcome& a, const Outcome& b) {
  const int64_t saved = c.table().saved_per_pair();
  expect_close(a.y, b.y, 0, "y");
  expect_close(a.d_hidden, b.d_hidden, 0, "d_hidden");
  expect_close(a.d_up, b.d_up, 0, "d_up");
  expect_close(a.d_down, b.d_down, 0, "d_down");
  expect_close(a.d_gate_proj, b.d_gate_proj, 0, "d_gate_proj");
  expect_close(real_pairs(a.d_gate), real_pairs(b.d_gate), 0, "d_gate");
  expect_close(real_pairs(a.saved, saved), real_pairs(b.saved, saved), 0, "saved");
}

using ShapeParameters = std::tuple<ExpertActivation, int64_t, int64_t, int64_t>;
class PathsOverShapes : public ::testing::TestWithParam<ShapeParameters> {};

TEST_P(PathsOverShapes, MatchReferenceAndEachOther) {
  const auto [activation, m, dim, tokens] = GetParam();
  for (Pairs pairs : {Pairs::mixed, Pairs::all, Pairs::sparse}) {
    for (int64_t candidates : {1, 12}) {
      SCOPED_TRACE(fmt::format("pairs {}, candidates {}", static_cast<int>(pairs), candidates));
      const Case c({.tokens = tokens,
                    .dim = dim,
                    .m = m,
                    .activation = activation,
                    .candidates = candidates,
                    .pairs = pairs});
      const Outcome dense = run(c, Way::dense), grouped = run(c, Way::grouped);
      {
        SCOPED_TRACE("dense");
        expect_matches_reference(c, dense);
      }
      {
        SCOPED_TRACE("grouped");
        expect_matches_reference(c, grouped);
      }
      expect_same(c, dense, grouped);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PathsOverShapes,
    ::testing::Combine(::testing::ValuesIn(kActivations), ::testing::Values(1, 2, 5, 17),
                       ::testing::Values(1, 7, 48), ::testing::Values(0, 1, 5, 64, 65)),
    [](const auto& test) {
      return fmt::format("{}_m{}_d{}_n{}", name_of(std::get<0>(test.param)),
                         std::get<1>(test.param), std::get<2>(test.param), std::get<3>(test.param));
    });

TEST(Paths, EveryInstructionSetMatchesReference) {
  for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0;
       targets &= targets - 1) {
    const int64_t target = targets & -targets;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (int64_t m : {1, 5, 17}) {
      for (int64_t dim : {3, 21}) {  // rows that end within a vector
        SCOPED_TRACE(fmt::format("{} m {} dim {}", hwy::TargetName(target), m, dim));
        const Case c({.tokens = 20, .dim = dim, .m = m, .activation = ExpertActivation::swiglu});
        expect_matches_reference(c, run(c, Way::dense));
        expect_matches_reference(c, run(c, Way::grouped));
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST(Paths, ManyPairsAreWorkedOffInPieces) {
  for (int64_t m : {1, 17}) {  // more pairs than the grouped path computes at a time
    const Case c({.tokens = 700,
                  .dim = 7,
                  .m = m,
                  .candidates = 30,
                  .local_experts = 40,
                  .pairs = Pairs::all});
    expect_matches_reference(c, run(c, Way::grouped));
    expect_matches_reference(c, run(c, Way::dense));
  }
}

TEST(Paths, MatchFiniteDifferences) {
  // The forward of the path itself in fp32 on both sides, hence the wide step and tolerance.
  constexpr float kStep = 1.0f / 64;
  constexpr double kDifferenceTolerance = 4e-3;
  for (ExpertActivation activation : kActivations) {
    if (activation == ExpertActivation::relu) continue;  // kink: reference_test covers it
    for (Way way : {Way::dense, Way::grouped}) {
      SCOPED_TRACE(name_of(activation) + (way == Way::dense ? " dense" : " grouped"));
      Case c({.tokens = 5,
              .dim = 7,
              .m = 2,
              .activation = activation,
              .candidates = 4,
              .local_experts = 5});
      const Outcome out = run(c, way);
      const auto loss = [&] {
        const std::vector<double> y = run(c, way).y;
        double sum = 0;
        for (int64_t t = 0; t < c.shape.tokens; ++t) {
          for (int64_t k = 0; k < c.shape.dim; ++k) {
            sum += double{y[t * c.shape.dim + k]} * c.matrix(c.d_y)(t, k);
          }
        }
        return sum;
      };
      const auto slope = [&](float& x) {
        const float original = x;
        x = original + kStep;
        const double above = loss();
        x = original - kStep;
        const double below = loss();
        x = original;
        return (above - below) / (2 * kStep);
      };
      const auto compare = [&](std::vector<float>& x, const auto& gradient) {
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          const std::size_t row = i / c.shape.dim, column = i % c.shape.dim;
          const double expected = slope(x[row * c.ld() + column]);
          ASSERT_NEAR(gradient[i] - Outcome::kStart, expected, kDifferenceTolerance) << i;
        }
      };
      compare(c.up, out.d_up);
      compare(c.down, out.d_down);
      compare(c.gate_proj, out.d_gate_proj);
      compare(c.hidden, out.d_hidden);
      for (int64_t p = Case::kJunkPairs; p < c.pairs(); ++p) {
        ASSERT_NEAR(out.d_gate[p], slope(c.gate[p]), kDifferenceTolerance) << "pair " << p;
      }
    }
  }
}

TEST(DensePath, BitsDoNotDependOnHowTokensAreSplit) {
  for (ExpertActivation activation : kActivations) {
    const Case c({.tokens = 150,
                  .dim = 48,
                  .m = 2,
                  .activation = activation,
                  .candidates = 90,
                  .local_experts = 100});
    const Outcome whole = run(c, Way::dense, 150);
    for (int64_t block : {1, 5, 16, 64}) {
      const Outcome split = run(c, Way::dense, block);
      EXPECT_EQ(split.y, whole.y) << "blocks of " << block;
      EXPECT_EQ(split.d_hidden, whole.d_hidden) << "blocks of " << block;
      EXPECT_EQ(split.d_gate, whole.d_gate) << "blocks of " << block;
      EXPECT_EQ(split.d_up, whole.d_up) << "blocks of " << block;
      EXPECT_EQ(split.d_down, whole.d_down) << "blocks of " << block;
      EXPECT_EQ(split.d_gate_proj, whole.d_gate_proj) << "blocks of " << block;
      EXPECT_EQ(split.saved, whole.saved) << "blocks of " << block;
    }
  }
}

void expect_same_gradients(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.d_up, b.d_up);
  EXPECT_EQ(a.d_down, b.d_down);
  EXPECT_EQ(a.d_gate_proj, b.d_gate_proj);
}

// A copy of an expert on another rank: every pair is computed by one of two calls, in whatever
// company, and what both added is what one call adds.
TEST(Paths, GradientsDoNotDependOnWhichCallHadWhichPair) {
  constexpr double kQuantum = 0x1p-44;
  for (ExpertActivation activation : kActivations) {
    for (int64_t m : {1, 5, 17}) {
      for (Way way : {Way::dense, Way::grouped}) {
        SCOPED_TRACE(fmt::format("{} m {} {}", name_of(activation), m,
                                 way == Way::dense ? "dense" : "grouped"));
        const Case c({.tokens = 60,
                      .dim = 21,
                      .m = m,
                      .activation = activation,
                      .candidates = 30,
                      .local_experts = 40});
        const Outcome whole = run(c, way, 64, kQuantum);
        const auto [one, other] = c.split_pairs();
        Outcome sum = run(one, way, 64, kQuantum);
        const Outcome rest = run(other, way, 7, kQuantum);
        ASSERT_LT(one.pairs(), c.pairs() * 3 / 4);
        const auto add = [](std::vector<double>& to, const std::vector<double>& x) {
          for (std::size_t i = 0; i < to.size(); ++i) to[i] += x[i] - Outcome::kStart;
        };
        add(sum.d_up, rest.d_up);
        add(sum.d_down, rest.d_down);
        add(sum.d_gate_proj, rest.d_gate_proj);
        expect_same_gradients(sum, whole);
      }
    }
  }
}

// The paths round the scores of hidden units differently. Where these are small integers they have
// the same pairs to add up, and the sums are the same bits.
TEST(Paths, BothAddTheSamePairsToTheSameBits) {
  constexpr double kQuantum = 0x1p-26;  // sums stay below 2^25, and gates have more places
  for (ExpertActivation activation : kActivations) {
    for (int64_t m : {1, 5, 17}) {
      SCOPED_TRACE(fmt::format("{} m {}", name_of(activation), m));
      Case c({.tokens = 70,
              .dim = 35,
              .m = m,
              .activation = activation,
              .candidates = 30,
              .local_experts = 40});
      c.round_to_integers();
      const Outcome dense = run(c, Way::dense, 64, kQuantum);
      expect_same_gradients(run(c, Way::grouped, 64, kQuantum), dense);
      EXPECT_EQ(run(c, Way::grouped).d_gate, dense.d_gate);
    }
  }
}

TEST(Paths, NothingSavedWhenNotAskedFor) {
  const Case c({.tokens = 5, .activation = ExpertActivation::swiglu});
  const Outcome expected = run(c, Way::dense);
  std::vector<double> dense(expected.y.size(), Outcome::kStart), grouped = dense;
  DenseWorkspace dense_workspace;
  forward_dense(c.table(),
                {c.matrix(c.hidden), c.candidates.data(), c.shape.candidates, c.dense_selection()},
                nullptr, {dense.data(), 5, c.shape.dim}, dense_workspace);
  EXPECT_EQ(dense, expected.y);
  PairGrouping grouping;
  GroupedWorkspace grouped_workspace;
  grouping.build(c.grouped_selection(), c.shape.local_experts);
  forward_grouped(c.table(), grouping, c.matrix(c.hidden), c.grouped_selection(), nullptr,
                  {grouped.data(), 5, c.shape.dim}, grouped_workspace);
  EXPECT_EQ(grouped, run(c, Way::grouped).y);
}

TEST(Paths, RefuseAGroupingOfOtherPairs) {
  const Case c({.tokens = 5});
  Outcome out = run(c, Way::dense);
  DenseWorkspace workspace;
  const DenseBlock block{c.matrix(c.hidden), c.candidates.data(), c.shape.candidates,
                         c.dense_selection()};
  const std::vector<double> quantum(5, 0x1p-44);
  EXPECT_THROW(
      backward_dense(c.table(), block, PairGrouping(), out.saved.data(), c.matrix(c.d_y),
                     out.d_gate.data(), quantum.data(), {out.d_hidden.data(), 5, 7}, {}, workspace),
      Error);
}

TEST(Paths, RefuseShapesThatDisagree) {
  const Case c({.tokens = 5}), narrow({.tokens = 5, .dim = 6});
  std::vector<double> y(5 * 7);
  DenseWorkspace workspace;
  const DenseBlock block{narrow.matrix(narrow.hidden), c.candidates.data(), c.shape.candidates,
                         c.dense_selection()};
  EXPECT_THROW(forward_dense(c.table(), block, nullptr, {y.data(), 5, 7}, workspace), Error);
  PairGrouping grouping;
  GroupedWorkspace grouped_workspace;
  grouping.build(c.grouped_selection(), c.shape.local_experts);
  EXPECT_THROW(forward_grouped(c.table(), grouping, c.matrix(c.hidden).slice_rows(0, 4),
                               c.grouped_selection(), nullptr, {y.data(), 5, 7}, grouped_workspace),
               Error);
}

}  // namespace
}  // namespace airmoe::experts::testing
