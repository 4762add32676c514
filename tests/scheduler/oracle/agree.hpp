#pragma once
// Comparisons that name the worst element.

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "tests/scheduler/oracle/layer_run.hpp"
#include "tests/scheduler/oracle/moe_reference.hpp"

namespace airmoe::oracle {

/// |got - want| <= tolerance * max(1, largest |want|), elementwise. NaN fails.
template <class A, class B>
void expect_close(const std::string& what, const std::vector<A>& got, const std::vector<B>& want,
                  double tolerance) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double scale = 1.0;
  for (const B x : want) scale = std::max(scale, std::abs(static_cast<double>(x)));
  std::size_t bad = 0, worst = 0;
  double largest = -1.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (error <= tolerance * scale) continue;
    ++bad;
    if (!(error <= largest)) {
      largest = error;
      worst = i;
    }
  }
  EXPECT_EQ(bad, 0u) << what << ": " << bad << " of " << want.size()
                     << " elements differ; the worst, element " << worst << ", is " << got[worst]
                     << " and should be " << want[worst];
}

/// Elements differ nowhere; says where first.
template <class T>
void expect_same(const std::string& what, const std::vector<T>& got, const std::vector<T>& want) {
  ASSERT_EQ(got.size(), want.size()) << what;
  const auto [a, b] = std::mismatch(got.begin(), got.end(), want.begin());
  if (a == got.end()) return;
  ADD_FAILURE() << what << ": element " << a - got.begin() << " is " << *a << " and should be "
                << *b;
}

struct Tolerance {
  double forward, gradient;
};
/// Against double precision. Scores carry an error of a few 2^-24 * |h|, which is the relative
/// error of a gate; outputs and gradients are sums of up to a few hundred such terms of order one.
inline constexpr Tolerance kToReference{1e-5, 2e-5};
/// Against the layer on one rank with SumPrecision::f32: parts of sums are rounded to float.
inline constexpr Tolerance kToOneRankF32{1e-6, 4e-6};

/// What SumPrecision::f64 promises: the same bits, since sums over ranks are exact.
inline void expect_same_rounding(const std::string& what, const std::vector<float>& got,
                                 const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i], want[i]) << what << ": element " << i;
  }
}

inline void expect_same_rounding(const Arrays<float>& got, const Arrays<float>& want) {
  expect_same_rounding("d_hidden", got.hidden, want.hidden);
  expect_same_rounding("d_centroid", got.centroid, want.centroid);
  expect_same_rounding("d_up", got.up, want.up);
  expect_same_rounding("d_down", got.down, want.down);
  expect_same_rounding("d_gate_proj", got.gate_proj, want.gate_proj);
}

template <class Want>
void expect_gradients(const Arrays<float>& got, const Want& want, double tolerance) {
  expect_close("d_hidden", got.hidden, want.hidden, tolerance);
  expect_close("d_centroid", got.centroid, want.centroid, tolerance);
  expect_close("d_up", got.up, want.up, tolerance);
  expect_close("d_down", got.down, want.down, tolerance);
  expect_close("d_gate_proj", got.gate_proj, want.gate_proj, tolerance);
}

/// `Want` is Forward or Outcome.
template <class Want>
void expect_forward(const Outcome& got, const Want& want, double tolerance) {
  expect_same("codeword", got.codeword, want.codeword);
  expect_same("expert", got.expert, want.expert);
  expect_close("gate", got.gate, want.gate, tolerance);
  expect_close("log_sum_exp", got.log_sum_exp, want.log_sum_exp, tolerance);
  expect_close("output", got.output, want.output, tolerance);
  EXPECT_NEAR(got.balance_loss, want.balance_loss,
              tolerance * std::max(1.0, std::abs(want.balance_loss)));
}

/// Outcomes of the same problem on different rank counts.
inline void expect_same_rounding(const Outcome& got, const Outcome& want) {
  expect_same("codeword", got.codeword, want.codeword);
  expect_same("expert", got.expert, want.expert);
  expect_same("gate", got.gate, want.gate);
  expect_same("log_sum_exp", got.log_sum_exp, want.log_sum_exp);
  expect_same_rounding("output", got.output, want.output);
  expect_same_rounding(got.gradient, want.gradient);
  EXPECT_NEAR(got.balance_loss, want.balance_loss, 1e-12 * std::abs(want.balance_loss));
}

/// The problem decides nothing by less than rounding can turn.
inline void expect_clear(const Problem& problem, const Forward& f) {
  if (problem.exact) return;
  EXPECT_GT(f.margin, 2e-5) << "choose another seed for the test data";
}

}  // namespace airmoe::oracle
