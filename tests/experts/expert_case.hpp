#pragma once
// Random expert problems, both execution paths run on them, and the double-precision answer.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "experts/dense_path.hpp"
#include "experts/grouped_path.hpp"
#include "experts/reference.hpp"

namespace airmoe::experts::testing {

/// Which pairs the tokens select.
enum class Pairs { mixed, all, sparse };  // mixed: 0 to all of them; sparse: 0 or 1

struct Shape {
  int64_t tokens = 5, dim = 7, m = 1;
  ExpertActivation activation = ExpertActivation::gelu;
  int64_t candidates = 12, local_experts = 20;
  Pairs pairs = Pairs::mixed;
};

/// A problem whose arrays all have what real ones have: leading dimensions above d, selections that
/// do not start at index 0, experts that nobody may select.
struct Case {
  static constexpr int64_t kJunkPairs = 3;  // before the selection's first pair
  static constexpr int64_t kLdPadding = 3;

  Shape shape;
  std::vector<float> up, down, gate_proj, hidden, d_y, gate;
  std::vector<int32_t> candidates;       // ascending local rows
  std::vector<int64_t> offset;           // of the selection
  std::vector<int32_t> position, local;  // index into candidates / local expert

  explicit Case(const Shape& s, uint32_t seed = 1) : shape(s) {
    std::mt19937 random(seed);
    const auto fill = [&](std::vector<float>& x, int64_t rows, float scale) {
      std::uniform_real_distribution<float> uniform(-scale, scale);
      x.resize(static_cast<std::size_t>(rows * ld()));
      for (float& value : x) value = uniform(random);
    };
    const float scale = 3.0f / std::sqrt(static_cast<float>(s.dim));  // pre-activations around 1
    fill(up, rows(), scale);
    fill(down, rows(), 1.0f);
    fill(gate_proj, rows(), scale);
    fill(hidden, s.tokens, 1.0f);
    fill(d_y, s.tokens, 1.0f);

    std::vector<int32_t> experts(static_cast<std::size_t>(s.local_experts));
    std::iota(experts.begin(), experts.end(), 0);
    std::sample(experts.begin(), experts.end(), std::back_inserter(candidates), s.candidates,
                random);
    const auto add_pair = [&](int32_t i, float weight) {
      position.push_back(i);
      local.push_back(candidates[static_cast<std::size_t>(i)]);
      gate.push_back(weight);
    };
    for (int64_t i = 0; i < kJunkPairs; ++i) add_pair(0, std::numeric_limits<float>::quiet_NaN());
    offset.push_back(kJunkPairs);
    std::uniform_real_distribution<float> weight(0.1f, 1.0f);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t most = s.pairs == Pairs::sparse ? 1 : s.candidates;
      const int64_t wanted =
          s.pairs == Pairs::all ? most : std::uniform_int_distribution<int64_t>(0, most)(random);
      std::vector<int32_t> places(static_cast<std::size_t>(s.candidates)), chosen;
      std::iota(places.begin(), places.end(), 0);
      std::sample(places.begin(), places.end(), std::back_inserter(chosen), wanted, random);
      for (int32_t i : chosen) add_pair(i, weight(random));
      offset.push_back(static_cast<int64_t>(position.size()));
    }
  }

  /// Everything but the gates becomes integers from -3 to 3, so that scores of hidden units are
  /// exact.
  void round_to_integers() {
    for (std::vector<float>* x : {&up, &down, &gate_proj, &hidden, &d_y}) {
      float largest = 0;
      for (const float value : *x) largest = std::max(largest, std::abs(value));
      for (float& value : *x) value = std::round(3.4f * value / largest);
    }
  }
  /// The same problem twice, each with about half of the pairs and together with all of them.
  std::pair<Case, Case> split_pairs() const {
    std::pair<Case, Case> parts(*this, *this);
    for (Case* part : {&parts.first, &parts.second}) {
      part->offset.resize(1);
      for (std::vector<int32_t>* x : {&part->position, &part->local}) x->resize(kJunkPairs);
      part->gate.resize(kJunkPairs);
    }
    std::mt19937 random(9);
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (auto p = static_cast<std::size_t>(offset[t]);
           p < static_cast<std::size_t>(offset[t + 1]); ++p) {
        Case& part = random() % 2 == 0 ? parts.first : parts.second;
        part.position.push_back(position[p]);
        part.local.push_back(local[p]);
        part.gate.push_back(gate[p]);
      }
      for (Case* part : {&parts.first, &parts.second}) part->offset.push_back(part->pairs());
    }
    return parts;
  }

  int64_t ld() const { return shape.dim + kLdPadding; }
  int64_t rows() const { return shape.local_experts * shape.m; }
  int64_t pairs() const { return static_cast<int64_t>(position.size()); }  // junk included
  bool gated() const { return shape.activation == ExpertActivation::swiglu; }
  ConstMatrix matrix(const std::vector<float>& x) const {
    return {x.data(), static_cast<int64_t>(x.size()) / ld(), shape.dim, ld()};
  }
  ExpertTable table() const {
    return {.up = matrix(up),
            .down = matrix(down),
            .gate_proj = gated() ? matrix(gate_proj) : ConstMatrix(),
            .expert_dim = shape.m,
            .activation = shape.activation};
  }
  SelectionView dense_selection() const {
    return {shape.tokens, offset.data(), position.data(), gate.data()};
  }
  SelectionView grouped_selection() const {
    return {shape.tokens, offset.data(), local.data(), gate.data()};
  }
};

enum class Way { dense, grouped };

/// Everything a forward and a backward produce, without row padding. Gradients start from
/// kStart, so that overwriting instead of adding shows.
struct Outcome {
  static constexpr float kStart = 0.75f;
  std::vector<double> y, d_hidden, d_up, d_down, d_gate_proj;
  std::vector<float> d_gate, saved;
};

/// Forward and backward in blocks of at most `block` tokens (dense) or at once (grouped).
inline Outcome run(const Case& c, Way way, int64_t block = 64,
                   double quantum_of_gradients = 0x1p-44) {
  const auto zeros = [](int64_t size, float value) {
    return std::vector<float>(static_cast<std::size_t>(size), value);
  };
  const int64_t n = c.shape.tokens, d = c.shape.dim;
  const ExpertTable table = c.table();
  const auto doubles = [&](int64_t rows) {
    return std::vector<double>(static_cast<std::size_t>(rows * d), Outcome::kStart);
  };
  Outcome out{.y = doubles(n),
              .d_hidden = doubles(n),
              .d_up = doubles(c.rows()),
              .d_down = doubles(c.rows()),
              .d_gate_proj = doubles(c.gated() ? c.rows() : 0),
              .d_gate = zeros(c.pairs(), -7.0f),
              .saved = zeros(c.pairs() * table.saved_per_pair(), -7.0f)};
  const MatrixView<double> y(out.y.data(), n, d), d_hidden(out.d_hidden.data(), n, d);
  const ConstMatrix hidden = c.matrix(c.hidden), d_y = c.matrix(c.d_y);
  const ExpertGradients gradients{.up = {out.d_up.data(), c.rows(), d},
                                  .down = {out.d_down.data(), c.rows(), d},
                                  .gate_proj = {out.d_gate_proj.data(), c.rows(), d},
                                  .quantum = quantum_of_gradients};
  const std::vector<double> quantum(static_cast<std::size_t>(n), 0x1p-44);
  if (way == Way::grouped) {
    PairGrouping grouping;
    GroupedWorkspace workspace;
    const SelectionView selection = c.grouped_selection();
    grouping.build(selection, c.shape.local_experts);
    forward_grouped(table, grouping, hidden, selection, out.saved.data(), y, workspace);
    backward_grouped(table, grouping, hidden, selection, out.saved.data(), d_y, out.d_gate.data(),
                     quantum.data(), d_hidden, gradients, workspace);
    return out;
  }
  DenseWorkspace workspace;
  PairGrouping grouping;
  const SelectionView whole = c.dense_selection();
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t size = std::min(block, n - begin);
    const DenseBlock part{hidden.slice_rows(begin, size),
                          c.candidates.data(),
                          c.shape.candidates,
                          {size, whole.offset + begin, whole.position, whole.gate}};
    forward_dense(table, part, out.saved.data(), y.slice_rows(begin, size), workspace);
    grouping.build(part.selection, part.count);
    backward_dense(table, part, grouping, out.saved.data(), d_y.slice_rows(begin, size),
                   out.d_gate.data(), quantum.data(), d_hidden.slice_rows(begin, size), gradients,
                   workspace);
  }
  return out;
}

/// The problem in double precision, with storage, and its answers (started from zero).
struct Exact {
  std::vector<double> up, down, gate_proj, hidden, d_y, gate;
  const Case& c;

  explicit Exact(const Case& problem)
      : up(unpad(problem, problem.up)),
        down(unpad(problem, problem.down)),
        gate_proj(unpad(problem, problem.gate_proj)),
        hidden(unpad(problem, problem.hidden)),
        d_y(unpad(problem, problem.d_y)),
        gate(problem.gate.begin(), problem.gate.end()),
        c(problem) {}

  static std::vector<double> unpad(const Case& c, const std::vector<float>& x) {
    std::vector<double> out;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (static_cast<int64_t>(i) % c.ld() < c.shape.dim) out.push_back(x[i]);
    }
    return out;
  }
  reference::ConstMatrix64 matrix(const std::vector<double>& x) const {
    return {x.data(), static_cast<int64_t>(x.size()) / c.shape.dim, c.shape.dim};
  }
  reference::Table table() const {
    return {matrix(up), matrix(down), matrix(gate_proj), c.shape.m, c.shape.activation};
  }
  std::vector<double> forward() const {
    return reference::forward(table(), matrix(hidden), c.grouped_selection(), gate.data());
  }
  reference::Gradients backward() const {
    return reference::backward(table(), matrix(hidden), c.grouped_selection(), gate.data(),
                               matrix(d_y));
  }
  /// <d_y, forward()>, whose gradients backward() returns.
  double loss() const {
    const std::vector<double> y = forward();
    return std::inner_product(y.begin(), y.end(), d_y.begin(), 0.0);
  }
};

inline std::string name_of(ExpertActivation activation) {
  switch (activation) {
    case ExpertActivation::gelu:
      return "gelu";
    case ExpertActivation::silu:
      return "silu";
    case ExpertActivation::relu:
      return "relu";
    case ExpertActivation::swiglu:
      return "swiglu";
  }
  return "?";
}

inline constexpr ExpertActivation kActivations[] = {ExpertActivation::gelu, ExpertActivation::silu,
                                                    ExpertActivation::relu,
                                                    ExpertActivation::swiglu};

}  // namespace airmoe::experts::testing
