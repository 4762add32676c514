// Several optimizer steps with everything on: moving codebook, jitter, balance loss, two
// micro-batches. Against the reference at every step, and bit for bit against itself.

#include <bit>

#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

const Shape kShape = {80, 14, 37, 4, 1, 5, 11, ExpertActivation::swiglu};
constexpr uint32_t kSteps = 3;
constexpr float kScale = 0.5f / 80.0f;  // two micro-batches a step

Problem problem() {
  Problem p = random_problem(kShape, 71);
  p.arrays.codebook.clear();
  p.config.codebook_decay = 0.95f;
  p.config.dead_threshold = 1.0f;
  p.config.jitter = 0.05f;
  return p;
}

Arrays<float> tokens_of(const Problem& p, uint32_t step, uint32_t index) {
  Arrays<float> a = p.arrays;
  const std::vector<float> noise = normal(std::ssize(a.hidden), 71, 200 + 2 * step + index, 0.3);
  for (std::size_t i = 0; i < noise.size(); ++i) a.hidden[i] += noise[i];
  a.d_out = normal(std::ssize(a.d_out), 71, 300 + 2 * step + index, 1.0);
  return a;
}

// x <- x - 0.05 g, on every parameter.
void descend(LayerRun& run) {
  run.layer.finish_gradients();
  for (auto& p : run.parameters.all()) {
    for (int64_t i = 0; i < p->local_size(); ++i) p->value[i] -= 0.05f * p->gradient[i];
  }
  run.layer.parameters_changed();
  run.parameters.zero_gradients();
}

Arrays<float> parameters_of(LayerRun& run) {
  Arrays<float> a;
  const auto all = [&](scheduler::Parameter& p) {
    return gather<float>(run.comm, p.value.data(), p.local_size());
  };
  a.centroid = all(run.layer.centroid());
  a.up = all(run.layer.up());
  a.down = all(run.layer.down());
  a.gate_proj = all(*run.layer.gate_proj());
  return a;
}

std::vector<float> codebook_of(LayerRun& run) {
  const auto c = run.layer.codebook().codewords();
  return {c.data, c.data + c.rows * c.cols};
}

// Two micro-batches and an update: bits of everything that came out on this rank.
void train_step(LayerRun& run, const Problem& p, uint32_t step, std::vector<uint32_t>& bits) {
  const auto keep = [&](const float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) bits.push_back(std::bit_cast<uint32_t>(x[i]));
  };
  for (uint32_t index = 0; index < 2; ++index) {
    const Arrays<float> a = tokens_of(p, step, index);
    const std::vector<float> out = run.forward(a.hidden, run.batch(true, kScale, step, index));
    const std::vector<float> d_hidden = run.backward(a.d_out);
    keep(out.data(), std::ssize(out));
    keep(d_hidden.data(), std::ssize(d_hidden));
  }
  descend(run);
  for (auto& parameter : run.parameters.all())
    keep(parameter->value.data(), parameter->local_size());
  const std::vector<float> codebook = codebook_of(run);
  keep(codebook.data(), std::ssize(codebook));
}

TEST(MoeSteps, FollowTheReference) {
  const Problem p = problem();
  LayerRun run(test::world(), p, Split::none_on_first);
  for (uint32_t step = 1; step <= kSteps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    Arrays<float> a = parameters_of(run);
    a.hidden = tokens_of(p, step, 0).hidden;
    a.d_out = tokens_of(p, step, 0).d_out;
    const Outcome got = run.run(a, run.batch(true, kScale, step), true);
    a.codebook = codebook_of(run);  // as the forward left it; moe_codebook_test checks it
    const Reference reference(p.config, kScale, JitterKey{kSeed, step, 0, kLayer},
                              JitterKey{kSeed, step, 0, kLayer});
    const Arrays<double> wide = widen(a);
    const Forward want = reference.forward(wide);
    expect_clear(p, want);
    expect_forward(got, want, kToReference.forward);
    expect_gradients(got.gradient, reference.backward(wide, want), kToReference.gradient);
    // run() has taken the gradients through the projection already.
    for (auto& x : run.parameters.all()) {
      for (int64_t i = 0; i < x->local_size(); ++i) x->value[i] -= 0.05f * x->gradient[i];
    }
    run.layer.parameters_changed();
  }
}

TEST(MoeSteps, AreTheSameBitsAgainAndWithEvaluationInBetween) {
  const Problem p = problem();
  const Arrays<float> other = tokens_of(p, 9, 1);
  std::vector<uint32_t> plain, again, evaluated;
  LayerRun first(test::world(), p, Split::even);
  LayerRun second(test::world(), p, Split::even);
  LayerRun third(test::world(), p, Split::even);
  for (uint32_t step = 1; step <= kSteps; ++step) {
    train_step(first, p, step, plain);
    train_step(second, p, step, again);
    train_step(third, p, step, evaluated);
    third.layer.rebuild_evaluation_lists();
    const std::vector<float> once = third.forward(other.hidden, third.batch(false, 0.0f));
    const std::vector<float> twice = third.forward(other.hidden, third.batch(false, 0.0f));
    expect_same("evaluation again", twice, once);
    scheduler::RoutingRecord record;
    third.layer.capture(record);
  }
  expect_same("again", again, plain);
  expect_same("with evaluation", evaluated, plain);
}

TEST(MoeSteps, AreTheSameOnOneRank) {
  const Problem p = problem();
  const auto alone = make_alone();
  LayerRun one(*alone, p, Split::even);
  LayerRun run(test::world(), p, Split::none_on_first);
  std::vector<uint32_t> ignored;
  for (uint32_t step = 1; step <= kSteps; ++step) {
    train_step(one, p, step, ignored);
    train_step(run, p, step, ignored);
    expect_same_rounding(parameters_of(run), parameters_of(one));
    EXPECT_EQ(codebook_of(run), codebook_of(one));
  }
}

TEST(MoeSteps, UsageWindowCountsTrainingSelectionsOnly) {
  const Problem p = problem();
  LayerRun run(test::world(), p, Split::all_on_last);
  run.layer.usage().begin_window();
  std::vector<int64_t> want(kShape.experts);
  for (uint32_t index = 0; index < 2; ++index) {
    const Arrays<float> a = tokens_of(p, 1, index);
    for (const int32_t e : run.run(a, run.batch(true, kScale, 1, index), false).expert) ++want[e];
    run.forward(p.arrays.hidden, run.batch(false, 0.0f));
  }
  run.layer.usage().flush();
  const auto window = run.layer.usage().window();
  EXPECT_EQ(gather(run.comm, window.data(), std::ssize(window)), want);
}

}  // namespace
}  // namespace airmoe::oracle
