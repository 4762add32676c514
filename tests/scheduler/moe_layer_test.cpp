// The MoE layer on any number of ranks against a double-precision reference in one process, and
// against itself on one rank.

#include <limits>

#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using experts::Path;
using scheduler::SumPrecision;

struct Case {
  const char* name;
  Shape shape;
  bool tied = false;
};

// tokens, d, E, K, m, G, M
const Case kCases[] = {
    {"plain", {61, 24, 40, 4, 1, 5, 12}},
    {"no_balance", {61, 16, 40, 4, 1, 5, 12, ExpertActivation::gelu, 0.0f}},
    {"swiglu_m3", {50, 21, 23, 3, 3, 4, 9, ExpertActivation::swiglu}},
    {"silu_m3_all_candidates_active", {40, 8, 17, 6, 3, 3, 6, ExpertActivation::silu}},
    {"relu_one_active", {40, 5, 30, 1, 1, 7, 11, ExpertActivation::relu}},
    {"every_expert_a_candidate", {33, 12, 14, 5, 1, 3, 14}},
    {"all_experts_active", {20, 12, 9, 9, 1, 2, 9}},
    {"one_codeword", {150, 17, 64, 7, 1, 1, 20}},
    {"many_tokens_per_codeword", {300, 10, 96, 3, 1, 2, 40, ExpertActivation::swiglu}},
    {"two_experts", {30, 9, 2, 1, 1, 4, 2, ExpertActivation::silu}},
    {"one_expert", {11, 9, 1, 1, 2, 3, 1}},
    {"more_codewords_than_tokens", {6, 16, 20, 4, 1, 16, 10}},
    {"one_token", {1, 16, 20, 4, 1, 3, 10}},
    {"no_tokens", {0, 16, 20, 4, 1, 3, 10}},
    {"ties", {80, 6, 31, 5, 1, 9, 13}, true},
    {"ties_one_active", {80, 4, 26, 1, 1, 3, 26, ExpertActivation::relu}, true},
};

Problem problem_of(const Case& c) {
  return c.tied ? tied_problem(c.shape, 11) : random_problem(c.shape, 11);
}

float loss_scale_of(const Problem& p) {
  return 1.0f / static_cast<float>(p.tokens);
}

class MoeLayerCases : public ::testing::TestWithParam<Case> {};

TEST_P(MoeLayerCases, ForwardAndBackwardAreTheReference) {
  const Problem p = problem_of(GetParam());
  const float scale = loss_scale_of(p);
  const Reference reference(p.config, scale);
  const Arrays<double> wide = widen(p.arrays);
  const Forward want = reference.forward(wide);
  const Gradients gradients = reference.backward(wide, want);
  expect_clear(p, want);
  const auto alone = make_alone();
  for (const Path path : {Path::dense, Path::grouped}) {
    SCOPED_TRACE(path == Path::dense ? "dense" : "grouped");
    LayerRun one_rank(*alone, p, Split::even, path);
    const Outcome one = one_rank.run(p.arrays, one_rank.batch(true, scale), true);
    expect_forward(one, want, kToReference.forward);
    expect_gradients(one.gradient, gradients, kToReference.gradient);
    for (const Split split : kSplits) {
      SCOPED_TRACE("split " + std::to_string(static_cast<int>(split)));
      LayerRun run(test::world(), p, split, path);
      const Outcome got = run.run(p.arrays, run.batch(true, scale), true);
      EXPECT_EQ(run.layer.last_path(), path);
      expect_forward(got, want, kToReference.forward);
      expect_gradients(got.gradient, gradients, kToReference.gradient);
      expect_same_rounding(got, one);
      expect_same("captured hidden", got.hidden, p.arrays.hidden);
      expect_same("captured output", run.recorded_output, got.output);
    }
    LayerRun floats(test::world(), p, Split::even, path, SumPrecision::f32);
    const Outcome got = floats.run(p.arrays, floats.batch(true, scale), true);
    expect_forward(got, want, kToReference.forward);
    expect_gradients(got.gradient, gradients, kToReference.gradient);
    expect_forward(got, one, kToOneRankF32.forward);
    expect_gradients(got.gradient, one.gradient, kToOneRankF32.gradient);
  }
}

INSTANTIATE_TEST_SUITE_P(All, MoeLayerCases, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

// A token that is not finite must not change the results of others, nor make ranks disagree about
// sizes: the trainer sees it in the loss and ends the run.
TEST(MoeLayerNotFinite, StaysWithItsToken) {
  const Shape shape = {40, 12, 30, 4, 1, 3, 10};
  constexpr int64_t kBadToken = 17;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 3e38f}) {
    for (const Path path : {Path::dense, Path::grouped}) {
      SCOPED_TRACE(bad);
      Problem p = random_problem(shape, 41);
      LayerRun run(test::world(), p, Split::even, path);
      const std::vector<float> out = run.forward(p.arrays.hidden, run.batch(true, 0.0f));
      const std::vector<float> back = run.backward(p.arrays.d_out);
      for (int64_t k = 0; k < 5; ++k) p.arrays.hidden[kBadToken * shape.dim + 2 * k] = bad;
      const std::vector<float> bad_out = run.forward(p.arrays.hidden, run.batch(true, 0.0f));
      const std::vector<float> bad_back = run.backward(p.arrays.d_out);
      bool seen = false;
      for (int64_t i = 0; i < std::ssize(out); ++i) {
        if (run.part.first + i / shape.dim == kBadToken) {
          seen |= !std::isfinite(bad_out[i]);
        } else {
          EXPECT_EQ(bad_out[i], out[i]);
          EXPECT_EQ(bad_back[i], back[i]);
        }
      }
      EXPECT_FALSE(test::on_all_ranks(!seen));
      scheduler::RoutingRecord record;
      EXPECT_NO_THROW(run.layer.capture(record));
    }
  }
}

}  // namespace
}  // namespace airmoe::oracle
