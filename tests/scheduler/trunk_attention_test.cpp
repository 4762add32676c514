// The causal attention kernel against plain double loops and their finite differences.

#include <limits>

#include <gtest/gtest.h>

#include "comm/base/random.hpp"
#include "scheduler/trunk/causal_attention.hpp"
#include "tests/scheduler/trunk_reference.hpp"

namespace airmoe::scheduler {
namespace {

struct Case {
  int64_t context, heads, kv_heads, head_dim;
};

Buffer<float> random(int64_t size, uint32_t which, float stddev = 1.0f) {
  Buffer<float> x(size);
  RandomStream(1, Purpose::test_data, which).fill_normal(x.data(), size, 0, stddev);
  return x;
}

reference::Rows rows(const Buffer<float>& x, int64_t count) {
  reference::Rows all;
  const int64_t width = x.size() / count;
  for (int64_t t = 0; t < count; ++t) {
    all.emplace_back(x.data() + t * width, x.data() + (t + 1) * width);
  }
  return all;
}

class TrunkAttention : public ::testing::TestWithParam<Case> {
 protected:
  int64_t n = GetParam().context, hd = GetParam().head_dim, heads = GetParam().heads,
          kv_heads = GetParam().kv_heads, width = heads * hd, kv_width = kv_heads * hd;
  CausalAttentionShape shape{n, heads, kv_heads, hd};
  Buffer<float> q = random(n * width, 1), k = random(n * kv_width, 2), v = random(n * kv_width, 3);
  Buffer<float> out{n * width}, log_sum{n * heads};
  CausalAttentionScratch scratch;

  void forward() {
    causal_attention_forward(shape, Matrix(q.data(), n, width), Matrix(k.data(), n, kv_width),
                             Matrix(v.data(), n, kv_width), Matrix(out.data(), n, width),
                             log_sum.data(), scratch);
  }
};

TEST_P(TrunkAttention, EqualsTheReference) {
  forward();
  const auto expected =
      reference::attention(rows(q, n), rows(k, n), rows(v, n), heads, kv_heads, hd);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      ASSERT_NEAR(out[t * width + i], expected[t][i], 2e-6) << t << " " << i;
    }
  }
}

TEST_P(TrunkAttention, GradientsEqualFiniteDifferences) {
  forward();
  const Buffer<float> d_out = random(n * width, 4);
  // Gradients overwrite: whatever was there before must not matter.
  Buffer<float> d_q(n * width, 9.0f), d_k(n * kv_width, 9.0f), d_v(n * kv_width, 9.0f);
  causal_attention_backward(shape, Matrix(q.data(), n, width), Matrix(k.data(), n, kv_width),
                            Matrix(v.data(), n, kv_width), Matrix(out.data(), n, width),
                            log_sum.data(), ConstMatrix(d_out.data(), n, width),
                            Matrix(d_q.data(), n, width), Matrix(d_k.data(), n, kv_width),
                            Matrix(d_v.data(), n, kv_width), scratch);
  const auto inner = [&](const reference::Rows& a, const reference::Rows& b,
                         const reference::Rows& c) {
    const auto y = reference::attention(a, b, c, heads, kv_heads, hd);
    double sum = 0.0;
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        sum += y[t][i] * static_cast<double>(d_out[t * width + i]);
      }
    }
    return sum;
  };
  const auto check = [&](int which, const Buffer<float>& gradient) {
    const int64_t cols = gradient.size() / n;
    for (uint32_t trial = 0; trial < 8; ++trial) {
      const auto words = RandomStream(6, Purpose::test_data).block(trial, which);
      const int64_t t = words[0] % static_cast<uint32_t>(n);
      const int64_t i = words[1] % static_cast<uint32_t>(cols);
      const auto at = [&](double step) {
        reference::Rows x[3] = {rows(q, n), rows(k, n), rows(v, n)};
        x[which][t][i] += step;
        return inner(x[0], x[1], x[2]);
      };
      const double expected = (at(1e-5) - at(-1e-5)) / 2e-5;
      EXPECT_NEAR(gradient[t * cols + i], expected, 1e-5 * (1.0 + std::abs(expected)))
          << which << " row " << t << " column " << i;
    }
  };
  check(0, d_q);
  check(1, d_k);
  check(2, d_v);
}

TEST_P(TrunkAttention, LaterKeysDoNotMatter) {
  forward();
  const int64_t keep = n / 2;
  std::vector<float> before(out.begin(), out.begin() + keep * width);
  for (int64_t i = keep * kv_width; i < n * kv_width; ++i) k[i] = v[i] = 1e6f;
  forward();
  EXPECT_EQ(before, std::vector<float>(out.begin(), out.begin() + keep * width));
}

INSTANTIATE_TEST_SUITE_P(Shapes, TrunkAttention,
                         ::testing::Values(Case{1, 2, 1, 4}, Case{63, 2, 2, 8}, Case{64, 3, 1, 2},
                                           Case{65, 4, 2, 8}, Case{150, 2, 1, 6}));

TEST(TrunkAttention, LargeScoresDoNotOverflow) {
  const CausalAttentionShape shape{3, 1, 1, 2};
  Buffer<float> q(6, 300.0f), k(6, 300.0f), v = random(6, 1), out(6), log_sum(3);
  CausalAttentionScratch scratch;
  causal_attention_forward(shape, Matrix(q.data(), 3, 2), Matrix(k.data(), 3, 2),
                           Matrix(v.data(), 3, 2), Matrix(out.data(), 3, 2), log_sum.data(),
                           scratch);
  EXPECT_NEAR(out[4], (v[0] + v[2] + v[4]) / 3.0f, 1e-6);  // equal scores: the mean
}

}  // namespace
}  // namespace airmoe::scheduler
