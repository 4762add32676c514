// Norms, RoPE, embedding and cross-entropy, each against plain double loops.

#include <cmath>
#include <complex>
#include <numeric>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"
#include "scheduler/trunk/cross_entropy.hpp"
#include "scheduler/trunk/embedding.hpp"
#include "scheduler/trunk/layer_norm.hpp"
#include "scheduler/trunk/rms_norm.hpp"
#include "scheduler/trunk/rope.hpp"
#include "tests/scheduler/trunk_reference.hpp"

namespace airmoe::scheduler {
namespace {

using reference::Vector;

Buffer<float> random(int64_t size, uint32_t which, float stddev = 1.0f) {
  Buffer<float> x(size);
  RandomStream(1, Purpose::test_data, which).fill_normal(x.data(), size, 0, stddev);
  return x;
}

Vector row(const Buffer<float>& x, int64_t t, int64_t cols) {
  return {x.data() + t * cols, x.data() + (t + 1) * cols};
}

/// d/dx[i] of <norm(x), weight> by central differences.
template <class Norm>
double slope(Vector x, std::size_t i, const Vector& weight, double step, Norm norm) {
  const auto at = [&](double shift) {
    Vector moved = x;
    moved[i] += shift;
    const Vector y = norm(moved);
    return std::inner_product(y.begin(), y.end(), weight.begin(), 0.0);
  };
  return (at(step) - at(-step)) / (2.0 * step);
}

TEST(TrunkOps, RmsNormAndItsGradient) {
  const int64_t n = 3, d = 37;  // not a multiple of the vector length
  const auto x = random(n * d, 1, 0.02f), gain = random(d, 2), d_out = random(n * d, 3);
  Buffer<float> out(n * d), inverse(n), d_x(n * d, 1.0f), d_gain(d, 2.0f);
  const ConstMatrix in(x.data(), n, d);
  rms_norm_forward(in, gain.data(), 1e-5f, Matrix(out.data(), n, d), inverse.data());
  rms_norm_backward(ConstMatrix(d_out.data(), n, d), in, gain.data(), inverse.data(),
                    Matrix(d_x.data(), n, d), d_gain.data());
  Vector expected_gain(d, 2.0);
  for (int64_t t = 0; t < n; ++t) {
    const Vector g = row(gain, 0, d), weight = row(d_out, t, d);
    const auto norm = [&](const Vector& v) { return reference::rms_norm(v, g, 1e-5f); };
    const Vector y = norm(row(x, t, d));
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_NEAR(out[t * d + i], y[i], 1e-6 * (1 + std::abs(y[i])));
      const double s = slope(row(x, t, d), i, weight, 1e-7, norm);
      EXPECT_NEAR(d_x[t * d + i], 1.0 + s, 1e-5 * (1 + std::abs(s)));
      expected_gain[i] += weight[i] * y[i] / g[i];
    }
  }
  for (int64_t i = 0; i < d; ++i) EXPECT_NEAR(d_gain[i], expected_gain[i], 1e-4);
}

// Scales from 1e-3 (experts at the start of training) to 1e3.
TEST(TrunkOps, LayerNormAndItsGradient) {
  const int64_t n = 3, d = 37;
  const float scales[] = {1e-3f, 1.0f, 1e3f};
  Buffer<float> x = random(n * d, 1);
  for (int64_t i = 0; i < n * d; ++i) x[i] = (x[i] + 0.3f) * scales[i / d];
  const Buffer<float> gain = random(d, 2), bias = random(d, 3), d_out = random(n * d, 4);
  Buffer<float> unit(n * d), out(n * d), inverse(n), d_x(n * d, 9.0f), d_gain(d, 2.0f),
      d_bias(d, 3.0f);
  std::copy(x.begin(), x.end(), unit.begin());
  layer_norm_forward(Matrix(unit.data(), n, d), gain.data(), bias.data(), inverse.data(),
                     Matrix(out.data(), n, d));
  layer_norm_backward(ConstMatrix(d_out.data(), n, d), ConstMatrix(unit.data(), n, d), gain.data(),
                      inverse.data(), Matrix(d_x.data(), n, d), d_gain.data(), d_bias.data());
  Vector expected_gain(d, 2.0), expected_bias(d, 3.0);
  for (int64_t t = 0; t < n; ++t) {
    const Vector g = row(gain, 0, d), b = row(bias, 0, d), weight = row(d_out, t, d);
    const auto norm = [&](const Vector& v) { return reference::layer_norm(v, g, b); };
    const Vector y = norm(row(x, t, d));
    const double scale = scales[t];
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_NEAR(out[t * d + i], y[i], 3e-6 * (1 + std::abs(y[i])));
      const double s = scale * slope(row(x, t, d), i, weight, 1e-6 * scale, norm);
      EXPECT_NEAR(static_cast<double>(d_x[t * d + i]) * scale, s, 1e-5 * (1 + std::abs(s)));
      expected_gain[i] += weight[i] * (y[i] - b[i]) / g[i];
      expected_bias[i] += weight[i];
    }
  }
  for (int64_t i = 0; i < d; ++i) {
    EXPECT_NEAR(d_gain[i], expected_gain[i], 1e-4);
    EXPECT_NEAR(d_bias[i], expected_bias[i], 1e-5);
  }
}

TEST(TrunkOps, LayerNormOfEqualValuesIsTheBiasWithoutGradient) {
  const int64_t d = 20;
  for (const float value : {0.0f, 1e-3f, 0.1f}) {
    Buffer<float> x(d, value), out(d), inverse(1), d_x(d, 9.0f), d_gain(d, 0.0f), d_bias(d, 0.0f);
    const Buffer<float> gain = random(d, 1), bias = random(d, 2), d_out = random(d, 3);
    layer_norm_forward(Matrix(x.data(), 1, d), gain.data(), bias.data(), inverse.data(),
                       Matrix(out.data(), 1, d));
    layer_norm_backward(ConstMatrix(d_out.data(), 1, d), ConstMatrix(x.data(), 1, d), gain.data(),
                        inverse.data(), Matrix(d_x.data(), 1, d), d_gain.data(), d_bias.data());
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_EQ(out[i], bias[i]);
      EXPECT_EQ(d_x[i], 0.0f);
      EXPECT_EQ(d_gain[i], 0.0f);
      EXPECT_EQ(d_bias[i], d_out[i]);
    }
  }
}

TEST(TrunkOps, RopeTurnsComplexPairs) {
  const int64_t n = 200, hd = 6;
  const double base = 5e5;
  const RopeTable table(n, hd, static_cast<float>(base));
  Buffer<float> x = random(n * 2 * hd, 1);
  const Vector before(x.begin(), x.end());
  table.rotate(Matrix(x.data(), n, 2 * hd));
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t i = 0; i < 2 * hd; i += 2) {
      const int64_t at = t * 2 * hd + i;
      const double angle =
          static_cast<double>(t) * std::pow(base, -static_cast<double>(i % hd) / hd);
      const auto turned = std::complex(before[at], before[at + 1]) * std::polar(1.0, angle);
      EXPECT_NEAR(x[at], turned.real(), 1e-6);
      EXPECT_NEAR(x[at + 1], turned.imag(), 1e-6);
    }
  }
  table.rotate_back(Matrix(x.data(), n, 2 * hd));
  for (int64_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], before[i], 1e-6);
}

// <rotate(q) at i, rotate(k) at j> depends on i - j only.
TEST(TrunkOps, RopeIsRelative) {
  const int64_t n = 64, hd = 8;
  const RopeTable table(n, hd, 100.0f);
  const auto one = random(hd, 1), other = random(hd, 2);
  Buffer<float> q(n * hd), k(n * hd);
  for (int64_t t = 0; t < n; ++t) {
    std::copy(one.begin(), one.end(), q.data() + t * hd);
    std::copy(other.begin(), other.end(), k.data() + t * hd);
  }
  table.rotate(Matrix(q.data(), n, hd));
  table.rotate(Matrix(k.data(), n, hd));
  const auto score = [&](int64_t i, int64_t j) {
    return std::inner_product(q.data() + i * hd, q.data() + (i + 1) * hd, k.data() + j * hd, 0.0f);
  };
  for (const int64_t distance : {0, 1, 7, 30}) {
    for (int64_t j = 0; j + distance < n; ++j) {
      EXPECT_NEAR(score(j + distance, j), score(distance, 0), 1e-5);
    }
  }
  EXPECT_GT(std::abs(score(1, 0) - score(7, 0)), 1e-2f);
}

TEST(TrunkOps, EmbeddingIsALookUpAndItsGradientASum) {
  const std::vector<int32_t> tokens = {2, 0, 2, 2};
  Buffer<float> table(6), out(8), d_out(8), d_table(6, 1.0f);
  std::iota(table.begin(), table.end(), 0.0f);
  std::iota(d_out.begin(), d_out.end(), 0.0f);
  embedding_forward(tokens, ConstMatrix(table.data(), 3, 2), Matrix(out.data(), 4, 2));
  EXPECT_EQ(std::vector<float>(out.begin(), out.end()),
            (std::vector<float>{4, 5, 0, 1, 4, 5, 4, 5}));
  embedding_backward(tokens, ConstMatrix(d_out.data(), 4, 2), Matrix(d_table.data(), 3, 2));
  EXPECT_EQ(std::vector<float>(d_table.begin(), d_table.end()),
            (std::vector<float>{1 + 2, 1 + 3, 1, 1, 1 + 0 + 4 + 6, 1 + 1 + 5 + 7}));
  const std::vector<int32_t> outside = {3, 0, 0, 0};
  EXPECT_THROW(
      embedding_forward(outside, ConstMatrix(table.data(), 3, 2), Matrix(out.data(), 4, 2)), Error);
}

// A vocabulary so large that rows are cut into several chunks, and a small one that is not.
TEST(TrunkOps, CrossEntropyAndItsGradient) {
  for (const int64_t vocab : {int64_t{5}, int64_t{300000}}) {
    const int64_t n = 37, d = 3;
    const auto hidden = random(n * d, 1, 3.0f), table = random(vocab * d, 2, 2.0f);
    std::vector<int32_t> targets;
    for (int64_t t = 0; t < n; ++t) targets.push_back(static_cast<int32_t>(t * 7919 % vocab));
    const ConstMatrix h(hidden.data(), n, d), e(table.data(), vocab, d);
    Buffer<float> d_hidden(n * d, 9.0f), d_table(vocab * d, 1.0f);
    CrossEntropyScratch scratch;
    const float loss_scale = 0.5f;
    const double loss =
        cross_entropy_backward(h, e, targets, loss_scale, Matrix(d_hidden.data(), n, d),
                               Matrix(d_table.data(), vocab, d), scratch);
    EXPECT_EQ(cross_entropy(h, e, targets, scratch), loss);
    EXPECT_LE(scratch.logits.size(), int64_t{5} << 20);

    double expected_loss = 0.0;
    Vector expected_table(vocab * d, 1.0);
    for (int64_t t = 0; t < n; ++t) {
      Vector p(vocab, 0.0);
      double total = 0.0;
      for (int64_t v = 0; v < vocab; ++v) {
        for (int64_t i = 0; i < d; ++i) {
          p[v] += static_cast<double>(hidden[t * d + i]) * static_cast<double>(table[v * d + i]);
        }
      }
      const double top = *std::max_element(p.begin(), p.end());
      const double at_target = p[targets[t]];
      for (double& value : p) total += value = std::exp(value - top);
      expected_loss += std::log(total) + top - at_target;
      Vector d_h(d, 0.0);
      for (int64_t v = 0; v < vocab; ++v) {
        const double d_logit =
            static_cast<double>(loss_scale) * (p[v] / total - (v == targets[t] ? 1.0 : 0.0));
        for (int64_t i = 0; i < d; ++i) {
          d_h[i] += d_logit * static_cast<double>(table[v * d + i]);
          expected_table[v * d + i] += d_logit * static_cast<double>(hidden[t * d + i]);
        }
      }
      for (int64_t i = 0; i < d; ++i) EXPECT_NEAR(d_hidden[t * d + i], d_h[i], 2e-5);
    }
    EXPECT_NEAR(loss, expected_loss, 1e-6 * expected_loss);
    for (int64_t i = 0; i < vocab * d; ++i) ASSERT_NEAR(d_table[i], expected_table[i], 1e-5) << i;
  }
}

TEST(TrunkOps, CrossEntropyRefusesATargetOutsideTheVocabulary) {
  const auto hidden = random(4, 1), table = random(8, 2);
  CrossEntropyScratch scratch;
  const std::vector<int32_t> targets = {4};
  EXPECT_THROW(cross_entropy(ConstMatrix(hidden.data(), 1, 2), ConstMatrix(table.data(), 4, 2),
                             targets, scratch),
               Error);
}

}  // namespace
}  // namespace airmoe::scheduler
