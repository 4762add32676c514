// Jitter: the draws are keyed by what they belong to, so neither the rank count nor how tokens lie
// on ranks can change what is selected.

#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

const Shape kShape = {200, 16, 70, 6, 1, 4, 24};
constexpr float kScale = 1.0f / 200.0f;

// Large enough to change who is selected for nearly every token; more than one block of tokens per
// codeword.
Problem jittered(uint64_t seed) {
  Problem p = random_problem(kShape, seed);
  p.config.jitter = 0.3f;
  return p;
}

Forward expected(const Problem& p, uint32_t list_step, uint32_t list_index, uint32_t step,
                 uint32_t index) {
  const Reference reference(p.config, kScale, JitterKey{kSeed, list_step, list_index, kLayer},
                            JitterKey{kSeed, step, index, kLayer});
  const Forward f = reference.forward(widen(p.arrays));
  expect_clear(p, f);
  return f;
}

TEST(MoeJitter, SelectsTheSameForAllRankCountsAndSplits) {
  const Problem p = jittered(31);
  const Forward want = expected(p, 4, 0, 4, 0);
  const Arrays<double> wide = widen(p.arrays);
  const Gradients gradients =
      Reference(p.config, kScale, std::nullopt, JitterKey{kSeed, 4, 0, kLayer})
          .backward(wide, want);
  EXPECT_NE(Reference(p.config, kScale).forward(wide).expert, want.expert);
  const auto alone = make_alone();
  LayerRun one_rank(*alone, p, Split::even);
  const Outcome one = one_rank.run(p.arrays, one_rank.batch(true, kScale, 4), true);
  expect_forward(one, want, kToReference.forward);
  for (const Split split : kSplits) {
    LayerRun run(test::world(), p, split);
    const Outcome got = run.run(p.arrays, run.batch(true, kScale, 4), true);
    expect_forward(got, want, kToReference.forward);
    expect_gradients(got.gradient, gradients, kToReference.gradient);
    expect_same_rounding(got, one);
  }
}

TEST(MoeJitter, IsDrawnAnewForEachMicroBatchAndListsAreKeptWithinAStep) {
  const Problem p = jittered(35);
  LayerRun run(test::world(), p, Split::even);
  const Outcome first = run.run(p.arrays, run.batch(true, kScale, 1, 0), false);
  expect_forward(first, expected(p, 1, 0, 1, 0), kToReference.forward);
  const Outcome second = run.run(p.arrays, run.batch(true, kScale, 1, 1), false);
  expect_forward(second, expected(p, 1, 0, 1, 1), kToReference.forward);
  EXPECT_NE(first.expert, second.expert);
  run.layer.parameters_changed();
  const Outcome third = run.run(p.arrays, run.batch(true, kScale, 2, 0), false);
  expect_forward(third, expected(p, 2, 0, 2, 0), kToReference.forward);
  EXPECT_NE(first.expert, third.expert);
}

TEST(MoeJitter, IsAbsentInEvaluation) {
  const Problem p = jittered(33);
  LayerRun run(test::world(), p, Split::even);
  run.run(p.arrays, run.batch(true, kScale), false);
  const Outcome got = run.run(p.arrays, run.batch(false, kScale), false);
  const Forward want = Reference(p.config, 0.0).forward(widen(p.arrays));
  expect_clear(p, want);
  expect_forward(got, want, kToReference.forward);
}

}  // namespace
}  // namespace airmoe::oracle
