// Gradients against finite differences of losses, and sums of gradients over micro-batches.

#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

const Shape kGelu = {14, 8, 12, 3, 2, 3, 6, ExpertActivation::gelu, 2.0f};
const Shape kSwiglu = {14, 8, 12, 3, 2, 3, 6, ExpertActivation::swiglu, 2.0f};

constexpr float kScale = 1.0f / 14.0f;

// Data whose decisions no step of a finite difference can turn.
Problem clear_problem(const Shape& shape, double margin) {
  for (uint64_t seed = 1;; ++seed) {
    Problem p = random_problem(shape, seed);
    if (Reference(p.config, kScale).forward(widen(p.arrays)).margin > margin) return p;
  }
}

// A class of values and their gradient, for one table over all classes.
struct Class {
  const char* name;
  std::vector<double> Arrays<double>::*wide;
  std::vector<float> Arrays<float>::*narrow;
  std::vector<double> Gradients::*gradient;
};
const Class kClasses[] = {
    {"hidden", &Arrays<double>::hidden, &Arrays<float>::hidden, &Gradients::hidden},
    {"centroid", &Arrays<double>::centroid, &Arrays<float>::centroid, &Gradients::centroid},
    {"up", &Arrays<double>::up, &Arrays<float>::up, &Gradients::up},
    {"down", &Arrays<double>::down, &Arrays<float>::down, &Gradients::down},
    {"gate_proj", &Arrays<double>::gate_proj, &Arrays<float>::gate_proj, &Gradients::gate_proj},
};

class MoeGradient : public ::testing::TestWithParam<Shape> {};

// The reference itself, on every element: what all other tests stand on.
TEST_P(MoeGradient, ReferenceIsTheDerivativeOfItsLoss) {
  const Problem p = clear_problem(GetParam(), 1e-3);
  const Reference reference(p.config, kScale);
  Arrays<double> a = widen(p.arrays);
  const Forward f = reference.forward(a);
  const Gradients gradients = reference.backward(a, f);
  for (const Class& c : kClasses) {
    std::vector<double>& x = a.*c.wide;
    std::vector<double> difference(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double before = x[i];
      constexpr double kStep = 1e-5;
      x[i] = before + kStep;
      const double above = reference.forward(a).loss;
      x[i] = before - kStep;
      const double below = reference.forward(a).loss;
      x[i] = before;
      difference[i] = (above - below) / (2 * kStep);
    }
    expect_close(c.name, gradients.*c.gradient, difference, 1e-8);
  }
}

double loss_of(LayerRun& run, const Arrays<float>& a) {
  run.load(a);
  const std::vector<float> out = run.forward(a.hidden, run.batch(true, kScale));
  double sum = run.layer.counters().balance_loss;
  const int64_t first = run.part.first * run.layer.config().dim;
  for (std::size_t i = 0; i < out.size(); ++i) {
    sum += static_cast<double>(out[i]) * a.d_out[first + i];
  }
  return run.comm.all_reduce_value(sum, comm::Reduction::sum);
}

// The layer's own loss, at the three largest entries of each class.
TEST_P(MoeGradient, LayerIsTheDerivativeOfItsLoss) {
  const Problem p = clear_problem(GetParam(), 0.02);
  Arrays<float> a = p.arrays;
  LayerRun run(test::world(), p, Split::even);
  const Outcome outcome = run.run(a, run.batch(true, kScale), true);
  for (const Class& c : kClasses) {
    const std::vector<float>& gradient = outcome.gradient.*c.narrow;
    std::vector<float>& x = a.*c.narrow;
    std::vector<std::size_t> order(gradient.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) {
      return std::abs(gradient[i]) > std::abs(gradient[j]);
    });
    order.resize(std::min<std::size_t>(3, order.size()));
    for (const std::size_t i : order) {
      const float before = x[i];
      constexpr float kStep = 1.0f / 512.0f;
      x[i] = before + kStep;
      const double above = loss_of(run, a);
      x[i] = before - kStep;
      const double below = loss_of(run, a);
      x[i] = before;
      // The loss is a sum of 112 outputs rounded to 2^-24: about 2e-6 off, 5e-4 in the quotient.
      const double difference = (above - below) / (2.0 * static_cast<double>(kStep));
      EXPECT_NEAR(gradient[i], difference, 2e-3 * std::max(1.0, std::abs(difference)))
          << c.name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MoeGradient, ::testing::Values(kGelu, kSwiglu), [](const auto& test) {
  return scheduler::name_of(test.param.activation);
});

// Parameter gradients of two micro-batches add up; d_hidden belongs to the last one alone.
TEST(MoeGradientSum, MicroBatchesAdd) {
  Problem first = random_problem(kGelu, 21);
  Problem second = random_problem(kGelu, 22);
  second.arrays.codebook = first.arrays.codebook;
  second.arrays.centroid = first.arrays.centroid;
  second.arrays.up = first.arrays.up;
  second.arrays.down = first.arrays.down;
  const Reference reference(first.config, 0.5 * kScale);
  const auto gradients_of = [&](const Problem& p) {
    const Arrays<double> wide = widen(p.arrays);
    const Forward f = reference.forward(wide);
    expect_clear(p, f);
    return reference.backward(wide, f);
  };
  const Gradients one = gradients_of(first);
  Gradients both = gradients_of(second);
  const auto add = [](std::vector<double>& to, const std::vector<double>& x) {
    for (std::size_t i = 0; i < x.size(); ++i) to[i] += x[i];
  };
  add(both.centroid, one.centroid);
  add(both.up, one.up);
  add(both.down, one.down);

  for (const auto path : {experts::Path::dense, experts::Path::grouped}) {
    LayerRun run(test::world(), first, Split::none_on_first, path);
    run.parameters.zero_gradients();
    run.forward(first.arrays.hidden, run.batch(true, 0.5f * kScale, 1, 0));
    run.backward(first.arrays.d_out);
    run.forward(second.arrays.hidden, run.batch(true, 0.5f * kScale, 1, 1));
    const std::vector<float> d_hidden = run.backward(second.arrays.d_out);
    run.layer.finish_gradients();
    Arrays<float> got;
    got.hidden = gather(run.comm, d_hidden.data(), std::ssize(d_hidden));
    got.centroid = run.gather_gradient(run.layer.centroid());
    got.up = run.gather_gradient(run.layer.up());
    got.down = run.gather_gradient(run.layer.down());
    expect_gradients(got, both, kToReference.gradient);
  }
}

// The gate of a single expert is 1: no rounding may look like a gradient of its centroid.
TEST(MoeGradientOfOne, IsExactlyZeroForCentroids) {
  const Problem p = random_problem({40, 24, 30, 1, 4, 2, 6}, 23);
  for (const auto path : {experts::Path::dense, experts::Path::grouped}) {
    LayerRun run(test::world(), p, Split::even, path);
    const Outcome got = run.run(p.arrays, run.batch(true, kScale), true);
    expect_same("d_centroid", got.gradient.centroid, std::vector<float>(30 * 24, 0.0f));
  }
}

}  // namespace
}  // namespace airmoe::oracle
