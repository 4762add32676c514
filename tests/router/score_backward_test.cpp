#include "router/score_backward.hpp"

#include <gtest/gtest.h>

#include "router/data.hpp"

namespace airmoe::router {
namespace {

struct Block {
  int64_t tokens, experts, d;
  std::vector<float> unit, hidden, d_score, gate;
  std::vector<int32_t> candidates, position, row;  // row = candidates[position]
  std::vector<int64_t> offset = {0};

  Block(test::Random& random, int64_t tokens_, int64_t experts_, int64_t count, int64_t d_)
      : tokens(tokens_), experts(experts_), d(d_) {
    unit = random.integers(experts * d, -3, 3);  // exact sums
    hidden = random.integers(tokens * d, -3, 3);
    candidates.resize(experts);
    std::iota(candidates.begin(), candidates.end(), 0);
    for (int64_t i = experts - 1; i > 0; --i) {
      std::swap(candidates[i], candidates[random.integer(0, i)]);
    }
    candidates.resize(count);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < count; ++i) {
        if (random.integer(0, 3) != 0 || i == 2) continue;  // nobody selects candidate 2
        position.push_back(static_cast<int32_t>(i));
        row.push_back(candidates[i]);
      }
      offset.push_back(static_cast<int64_t>(position.size()));
    }
    d_score = random.integers(offset.back(), -3, 3);
    gate = random.normals(offset.back());
  }

  SelectionView selection(const std::vector<int32_t>& index) const {
    return {tokens, offset.data(), index.data(), gate.data()};
  }
};

// By places in the candidates, and by rows of the table.
TEST(ScoreBackward, EqualsTheDefinitionEitherWay) {
  test::Random random(1);
  for (const int64_t tokens : {0, 1, 16, 37}) {
    for (const int64_t count : {1, 3, 50}) {
      for (const int64_t d : {1, 5, 32, 40}) {
        SCOPED_TRACE(::testing::Message() << tokens << " " << count << " " << d);
        const Block block(random, tokens, 60, count, d);
        // The gradient arrays are added to.
        std::vector<double> expected_hidden(tokens * d, 1.0);
        std::vector<double> expected_unit(60 * d, 2.0);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t p = block.offset[t]; p < block.offset[t + 1]; ++p) {
            for (int64_t k = 0; k < d; ++k) {
              expected_hidden[t * d + k] +=
                  static_cast<double>(block.d_score[p]) * block.unit[block.row[p] * d + k];
              expected_unit[block.row[p] * d + k] +=
                  static_cast<double>(block.d_score[p]) * block.hidden[t * d + k];
            }
          }
        }
        const ConstMatrix unit = test::matrix(block.unit, 60, d);
        const ConstMatrix hidden = test::matrix(block.hidden, tokens, d);
        std::vector<double> d_hidden(tokens * d, 1.0);
        std::vector<double> d_unit(60 * d, 2.0);
        const std::vector<double> quantum(tokens, 0x1p-40);
        PairGrouping grouping;
        PairAccumulateWorkspace workspace;
        grouping.build(block.selection(block.position), count);
        score_backward(unit, block.candidates.data(), hidden, block.selection(block.position),
                       grouping, block.d_score.data(), quantum.data(), {d_hidden.data(), tokens, d},
                       0x1p-40, {d_unit.data(), 60, d}, workspace);
        EXPECT_EQ(d_hidden, expected_hidden);
        EXPECT_EQ(d_unit, expected_unit);
        d_hidden.assign(tokens * d, 1.0);
        d_unit.assign(60 * d, 2.0);
        grouping.build(block.selection(block.row), 60);
        score_backward(unit, nullptr, hidden, block.selection(block.row), grouping,
                       block.d_score.data(), quantum.data(), {d_hidden.data(), tokens, d}, 0x1p-40,
                       {d_unit.data(), 60, d}, workspace);
        EXPECT_EQ(d_hidden, expected_hidden);
        EXPECT_EQ(d_unit, expected_unit);
      }
    }
  }
}

// Two ranks with half of the candidates each, in blocks of any size, against one call.
TEST(ScoreBackward, BitsDoNotDependOnBlocksOrOnWhoHasWhichCandidate) {
  test::Random random(3);
  const int64_t tokens = 50, experts = 40, d = 21;
  Block whole(random, tokens, experts, experts, d);
  whole.unit = random.normals(experts * d);
  whole.hidden = random.normals(tokens * d);
  whole.d_score = random.normals(std::ssize(whole.position));
  const ConstMatrix unit = test::matrix(whole.unit, experts, d);
  const ConstMatrix hidden = test::matrix(whole.hidden, tokens, d);
  const std::vector<double> quantum(tokens, 0x1p-44);
  PairAccumulateWorkspace workspace;
  PairGrouping grouping;
  const auto add = [&](const SelectionView& selection, const std::vector<float>& d_score,
                       int64_t first, std::vector<double>& d_hidden, std::vector<double>& d_unit) {
    grouping.build(selection, experts);
    score_backward(unit, nullptr, hidden.slice_rows(first, selection.tokens), selection, grouping,
                   d_score.data(), quantum.data(),
                   {d_hidden.data() + first * d, selection.tokens, d}, 0x1p-46,
                   {d_unit.data(), experts, d}, workspace);
  };
  std::vector<double> hidden_once(tokens * d, 0.0), unit_once(experts * d, 0.0);
  add(whole.selection(whole.row), whole.d_score, 0, hidden_once, unit_once);
  for (const int64_t size : {1, 7, 50}) {
    std::vector<double> d_hidden(tokens * d, 0.0), d_unit(experts * d, 0.0);
    for (const bool upper : {true, false}) {
      std::vector<int64_t> offset = {0};
      std::vector<int32_t> row;
      std::vector<float> d_score;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t p = whole.offset[t]; p < whole.offset[t + 1]; ++p) {
          if ((whole.row[p] >= experts / 2) != upper) continue;
          row.push_back(whole.row[p]);
          d_score.push_back(whole.d_score[p]);
        }
        offset.push_back(std::ssize(row));
      }
      for (int64_t t = 0; t < tokens; t += size) {
        add({std::min(size, tokens - t), offset.data() + t, row.data(), nullptr}, d_score, t,
            d_hidden, d_unit);
      }
    }
    EXPECT_EQ(d_hidden, hidden_once) << size;
    EXPECT_EQ(d_unit, unit_once) << size;
  }
}

// One token, all experts selected: loss = sum of a_e * softmax(<h, w_e>).
double loss(const std::vector<double>& h, const std::vector<double>& w, const std::vector<float>& a,
            int64_t d) {
  double numerator = 0.0, denominator = 0.0;
  for (std::size_t e = 0; e < a.size(); ++e) {
    double z = 0.0;
    for (int64_t k = 0; k < d; ++k) z += h[k] * w[e * d + k];
    numerator += a[e] * std::exp(z);
    denominator += std::exp(z);
  }
  return numerator / denominator;
}

TEST(ScoreBackward, SoftmaxAndScoresEqualFiniteDifferences) {
  test::Random random(2);
  const int64_t experts = 7, d = 4;
  const auto h = random.normals(d), w = random.normals(experts * d), a = random.normals(experts);
  std::vector<float> gate(experts), d_score(experts);
  std::vector<double> z(experts);
  double sum = 0.0, dot = 0.0;
  for (int64_t e = 0; e < experts; ++e) sum += std::exp(test::dot(h.data(), &w[e * d], d));
  for (int64_t e = 0; e < experts; ++e) {
    gate[e] = static_cast<float>(std::exp(test::dot(h.data(), &w[e * d], d)) / sum);
    dot += static_cast<double>(gate[e]) * a[e];
  }
  const std::vector<int64_t> offset = {0, experts};
  std::vector<int32_t> position(experts);
  std::iota(position.begin(), position.end(), 0);
  const SelectionView selection{1, offset.data(), position.data(), gate.data()};
  const float dot_f = static_cast<float>(dot);
  softmax_backward(selection, a.data(), &dot_f, d_score.data());
  std::vector<double> d_hidden(d);
  const std::vector<double> quantum(1, 0x1p-44);
  std::vector<double> d_unit(experts * d);
  PairGrouping grouping;
  PairAccumulateWorkspace workspace;
  grouping.build(selection, experts);
  score_backward(test::matrix(w, experts, d), nullptr, test::matrix(h, 1, d), selection, grouping,
                 d_score.data(), quantum.data(), {d_hidden.data(), 1, d}, 0x1p-46,
                 {d_unit.data(), experts, d}, workspace);
  const std::vector<double> h0(h.begin(), h.end()), w0(w.begin(), w.end());
  const double step = 1e-5;
  for (int64_t k = 0; k < d; ++k) {
    auto up = h0, down = h0;
    up[k] += step;
    down[k] -= step;
    EXPECT_NEAR(d_hidden[k], (loss(up, w0, a, d) - loss(down, w0, a, d)) / (2 * step), 2e-6);
  }
  for (int64_t i = 0; i < experts * d; ++i) {
    auto up = w0, down = w0;
    up[i] += step;
    down[i] -= step;
    EXPECT_NEAR(d_unit[i], (loss(h0, up, a, d) - loss(h0, down, a, d)) / (2 * step), 2e-6);
  }
}

TEST(SoftmaxBackward, EachTokenUsesItsOwnDot) {
  const std::vector<int64_t> offset = {0, 1, 1, 3};
  const std::vector<float> gate = {0.5f, 0.25f, 2.0f}, d_gate = {3.0f, 5.0f, 7.0f};
  const std::vector<float> dot = {1.0f, 100.0f, 2.0f};
  std::vector<float> d_score(3);
  softmax_backward({3, offset.data(), nullptr, gate.data()}, d_gate.data(), dot.data(),
                   d_score.data());
  EXPECT_EQ(d_score, (std::vector<float>{1.0f, 0.75f, 10.0f}));
}

}  // namespace
}  // namespace airmoe::router
