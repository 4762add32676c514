// Every operation of the trunk on a device against the host's, on the same (rounded) inputs.

#include <gtest/gtest.h>

#include "scheduler/cuda/cross_entropy.hpp"
#include "scheduler/cuda/embedding.hpp"
#include "scheduler/cuda/gemm.hpp"
#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/rope.hpp"
#include "scheduler/cuda/swiglu.hpp"
#include "scheduler/trunk/cross_entropy.hpp"
#include "scheduler/trunk/embedding.hpp"
#include "scheduler/trunk/layer_norm.hpp"
#include "scheduler/trunk/rms_norm.hpp"
#include "scheduler/trunk/rope.hpp"
#include "tests/scheduler/cuda/device_arrays.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using test::DeviceBuffer;
using test::from_device;
using test::normal;
using test::relative_distance;
using test::rounded;
using test::Stream;
using test::to_device;
using test::tolerance;
using test::uniform_ids;

template <class T>
class TrunkOps : public ::testing::Test {};
using ComputeTypes = ::testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(TrunkOps, ComputeTypes);

ConstMatrix view(const std::vector<float>& x, int64_t cols) {
  return {x.data(), static_cast<int64_t>(x.size()) / cols, cols};
}
Matrix view(std::vector<float>& x, int64_t cols) {
  return {x.data(), static_cast<int64_t>(x.size()) / cols, cols};
}
std::vector<float> zeros(int64_t size) {
  return std::vector<float>(static_cast<std::size_t>(size));
}

// Widths of one, several and many chunks of a warp, full and not.
const std::pair<int64_t, int64_t> kRows[] = {{1, 8},    {5, 24},   {130, 128}, {4200, 256},
                                             {33, 512}, {70, 768}, {9, 1032},  {3, 2056}};

TYPED_TEST(TrunkOps, RmsNormForwardAddsTheBranch) {
  using T = TypeParam;
  const Stream stream;
  for (const auto& [n, d] : kRows) {
    const auto x = normal(n * d, 1.5f, 1), gain = normal(d, 1.0f, 3);
    const auto branch = rounded<T>(normal(n * d, 0.7f, 2));
    auto sum = x;
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += branch[i];
    auto out = zeros(n * d), inverse = zeros(n);
    scheduler::rms_norm_forward(view(sum, d), gain.data(), 1e-5f, view(out, d), inverse.data());

    auto dx = to_device<float>(x), dgain = to_device<float>(gain);
    const auto dbranch = to_device<T>(branch);
    DeviceBuffer<float> dinverse(n);
    DeviceBuffer<T> dout(n * d);
    rms_norm_forward(dx.data(), dbranch.data(), dgain.data(), 1e-5f, n, d, dx.data(), dout.data(),
                     dinverse.data(), stream);
    EXPECT_EQ(from_device<float>(dx, stream), sum);
    EXPECT_LT(relative_distance(from_device<float>(dinverse, stream), inverse), 1e-6) << n << d;
    EXPECT_LT(relative_distance(from_device<float>(dout, stream), out), tolerance<T>()) << d;
  }
}

TYPED_TEST(TrunkOps, RmsNormBackward) {
  using T = TypeParam;
  const Stream stream;
  ColumnSums columns;
  for (const auto& [n, d] : kRows) {
    const auto x = normal(n * d, 1.5f, 1), gain = normal(d, 1.0f, 3), start = normal(d, 1.0f, 4);
    const auto residual = normal(n * d, 0.3f, 5), g = rounded<T>(normal(n * d, 0.7f, 2));
    auto out = zeros(n * d), inverse = zeros(n), d_x = residual, d_gain = start;
    scheduler::rms_norm_forward(view(x, d), gain.data(), 1e-5f, view(out, d), inverse.data());
    scheduler::rms_norm_backward(view(g, d), view(x, d), gain.data(), inverse.data(), view(d_x, d),
                                 d_gain.data());

    const auto dx = to_device<float>(x), dgain = to_device<float>(gain),
               dinverse = to_device<float>(inverse);
    const auto dg = to_device<T>(g);
    auto stream_gradient = to_device<float>(residual), gain_gradient = to_device<float>(start);
    DeviceBuffer<T> copy(n * d);
    rms_norm_backward(dg.data(), dx.data(), dgain.data(), dinverse.data(), n, d,
                      stream_gradient.data(), stream_gradient.data(), copy.data(),
                      gain_gradient.data(), columns, stream);
    const auto result = from_device<float>(stream_gradient, stream);
    EXPECT_LT(relative_distance(result, d_x), 1e-5) << n << " " << d;
    EXPECT_EQ(from_device<float>(copy, stream), rounded<T>(result));
    EXPECT_LT(relative_distance(from_device<float>(gain_gradient, stream), d_gain), 1e-5) << d;
  }
}

TYPED_TEST(TrunkOps, LayerNormBothWays) {
  using T = TypeParam;
  const Stream stream;
  ColumnSums columns;
  for (const auto& [n, d] : kRows) {
    auto x = normal(n * d, 1e-3f, 1);
    for (int64_t i = 0; i < d; ++i) x[static_cast<std::size_t>(i)] = 0.3f;  // a row of equal values
    const auto gain = normal(d, 1.0f, 3), bias = normal(d, 1.0f, 4), g = normal(n * d, 0.7f, 2);
    auto unit = x, inverse = zeros(n), out = zeros(n * d);
    scheduler::layer_norm_forward(view(unit, d), gain.data(), bias.data(), inverse.data(),
                                  view(out, d));
    const auto dx = to_device<float>(x), dgain = to_device<float>(gain),
               dbias = to_device<float>(bias), dg = to_device<float>(g);
    DeviceBuffer<T> dunit(n * d), dout(n * d), dd_x(n * d);
    DeviceBuffer<float> dinverse(n);
    layer_norm_forward(dx.data(), dgain.data(), dbias.data(), n, d, dunit.data(), dinverse.data(),
                       dout.data(), stream);
    EXPECT_LT(relative_distance(from_device<float>(dunit, stream), unit), tolerance<T>()) << d;
    EXPECT_LT(relative_distance(from_device<float>(dinverse, stream), inverse), 1e-5) << d;
    EXPECT_LT(relative_distance(from_device<float>(dout, stream), out), tolerance<T>()) << d;

    unit = from_device<float>(dunit, stream);  // so that only the backward differs
    inverse = from_device<float>(dinverse, stream);
    auto d_x = zeros(n * d), d_gain = gain, d_bias = bias;
    scheduler::layer_norm_backward(view(g, d), view(unit, d), gain.data(), inverse.data(),
                                   view(d_x, d), d_gain.data(), d_bias.data());
    auto gain_gradient = to_device<float>(gain), bias_gradient = to_device<float>(bias);
    layer_norm_backward(dg.data(), dunit.data(), dgain.data(), dinverse.data(), n, d, dd_x.data(),
                        gain_gradient.data(), bias_gradient.data(), columns, stream);
    EXPECT_LT(relative_distance(from_device<float>(dd_x, stream), d_x), tolerance<T>()) << d;
    EXPECT_LT(relative_distance(from_device<float>(gain_gradient, stream), d_gain), 1e-5) << d;
    EXPECT_LT(relative_distance(from_device<float>(bias_gradient, stream), d_bias), 1e-5) << d;
  }
}

TYPED_TEST(TrunkOps, RopeTurnsTheFirstColumnsAndBack) {
  using T = TypeParam;
  const Stream stream;
  const int64_t context = 37, sequences = 3, head_dim = 24, columns = 5 * head_dim, ld = 128;
  const auto x = rounded<T>(normal(sequences * context * ld, 1.0f, 1));
  auto expected = x;
  const scheduler::RopeTable table(context, head_dim, 100.0f);
  for (int64_t s = 0; s < sequences; ++s) {
    table.rotate(Matrix(expected.data() + s * context * ld, context, columns, ld));
  }
  const DeviceRope rope(context, head_dim, 100.0f);
  auto dx = to_device<T>(x);
  rope.rotate(dx.data(), sequences * context, columns, ld, stream);
  EXPECT_LT(relative_distance(from_device<float>(dx, stream), rounded<T>(expected)),
            tolerance<T>() / 10);
  rope.rotate_back(dx.data(), sequences * context, columns, ld, stream);
  EXPECT_LT(relative_distance(from_device<float>(dx, stream), x), tolerance<T>());
}

TYPED_TEST(TrunkOps, SwigluBothWays) {
  using T = TypeParam;
  const Stream stream;
  for (const auto& [n, f] : {std::pair<int64_t, int64_t>{1, 8}, {77, 40}, {300, 768}}) {
    const auto gate_up = rounded<T>(normal(n * 2 * f, 2.0f, 1));
    const auto d_hidden = rounded<T>(normal(n * f, 1.0f, 2));
    auto hidden = zeros(n * f), d_gate_up = zeros(n * 2 * f);
    for (int64_t i = 0; i < n * f; ++i) {
      const int64_t at = i / f * 2 * f + i % f;
      const double x = gate_up[at], up = gate_up[at + f], s = 1 / (1 + std::exp(-x));
      hidden[i] = static_cast<float>(x * s * up);
      d_gate_up[at] = static_cast<float>(d_hidden[i] * up * (s + x * s * (1 - s)));
      d_gate_up[at + f] = static_cast<float>(d_hidden[i] * x * s);
    }
    auto dgate_up = to_device<T>(gate_up);
    const auto dd_hidden = to_device<T>(d_hidden);
    DeviceBuffer<T> dhidden(n * f);
    swiglu_forward(dgate_up.data(), n, f, dhidden.data(), stream);
    EXPECT_LT(relative_distance(from_device<float>(dhidden, stream), hidden), tolerance<T>());
    swiglu_backward(dgate_up.data(), dd_hidden.data(), n, f, dgate_up.data(), stream);
    EXPECT_LT(relative_distance(from_device<float>(dgate_up, stream), d_gate_up), tolerance<T>());
  }
}

TYPED_TEST(TrunkOps, ProductsOfSmallIntegersAreExact) {
  using T = TypeParam;
  const Stream stream;
  Gemm gemm;
  const int64_t shapes[][3] = {{1, 8, 8}, {70, 24, 40}, {300, 256, 384}, {2048, 128, 16}};
  for (const auto& [n, in, out] : shapes) {
    const int64_t ld = out + 8;
    const auto integers = [](int64_t size, uint32_t which) {
      auto x = uniform_ids(size, 7, which);
      std::vector<float> y;
      for (const int32_t value : x) y.push_back(static_cast<float>(value - 3));
      return y;
    };
    const auto x = integers(n * in, 1), w = integers(out * in, 2), g = integers(n * ld, 3);
    const auto start = integers(out * in, 4);
    auto y = g, d_x = zeros(n * in), d_w = start;
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t o = 0; o < out; ++o) {
        float sum = 0;
        for (int64_t i = 0; i < in; ++i) {
          sum += x[t * in + i] * w[o * in + i];
          d_x[t * in + i] += g[t * ld + o] * w[o * in + i];
          d_w[o * in + i] += g[t * ld + o] * x[t * in + i];
        }
        y[t * ld + o] = sum;
      }
    }
    const auto dx = to_device<T>(x), dw = to_device<T>(w), dg = to_device<T>(g);
    auto dy = to_device<T>(g);
    DeviceBuffer<T> dd_x(n * in);
    auto dd_w = to_device<float>(start);
    linear_forward(gemm, n, in, out, dx.data(), dw.data(), dy.data(), ld, stream);
    linear_backward_input(gemm, n, in, out, dg.data(), ld, dw.data(), dd_x.data(), stream);
    linear_backward_weight(gemm, n, in, out, dg.data(), ld, dx.data(), dd_w.data(), stream);
    EXPECT_EQ(from_device<float>(dy, stream), rounded<T>(y)) << n;
    EXPECT_EQ(from_device<float>(dd_x, stream), rounded<T>(d_x)) << n;
    EXPECT_EQ(from_device<float>(dd_w, stream), d_w) << n;
  }
}

TYPED_TEST(TrunkOps, CrossEntropyInChunks) {
  using T = TypeParam;
  const Stream stream;
  Gemm gemm;
  const double close = sizeof(T) == 4 ? 1e-5 : 2e-2;
  const int64_t shapes[][3] = {{70, 24, 31}, {200, 64, 256}, {50, 128, 5000}, {20, 32, 20001}};
  for (const auto& [n, d, vocab] : shapes) {
    const auto hidden = rounded<T>(normal(n * d, 1.0f, 1));
    const auto embedding = rounded<T>(normal(vocab * d, 0.3f, 2)), start = normal(vocab * d, 1, 3);
    const auto targets = uniform_ids(n, vocab, 4);
    auto d_hidden = zeros(n * d), d_embedding = start;
    scheduler::CrossEntropyScratch scratch;
    const double expected =
        scheduler::cross_entropy_backward(view(hidden, d), view(embedding, d), targets, 0.25f,
                                          view(d_hidden, d), view(d_embedding, d), scratch);
    const auto dhidden = to_device<T>(hidden), dembedding = to_device<T>(embedding);
    const auto dtargets = to_device<int32_t>(targets);
    auto loss = to_device<double>(std::vector<double>{1.0});
    DeviceBuffer<T> dd_hidden(n * d);
    auto dd_embedding = to_device<float>(start);
    CrossEntropyWorkspace<T> workspace;
    workspace.logit_bytes = 30 * vocab * static_cast<int64_t>(sizeof(T));  // several chunks
    const CrossEntropyInput<T> input{
        n, d, vocab, dhidden.data(), dembedding.data(), dtargets.data()};
    cross_entropy(gemm, input, loss.data(), workspace, stream);
    EXPECT_NEAR(from_device<double>(loss, stream)[0] - 1.0, expected, close * expected);
    cross_entropy_backward(gemm, input, 0.25f, loss.data(), dd_hidden.data(), dd_embedding.data(),
                           workspace, stream);
    EXPECT_NEAR(from_device<double>(loss, stream)[0] - 1.0, 2 * expected, 2 * close * expected);
    EXPECT_LT(relative_distance(from_device<float>(dd_hidden, stream), d_hidden), close) << vocab;
    auto added = from_device<float>(dd_embedding, stream);
    for (std::size_t i = 0; i < added.size(); ++i) {
      added[i] -= start[i];
      d_embedding[i] -= start[i];
    }
    EXPECT_LT(relative_distance(added, d_embedding), 2 * close) << vocab;
  }
}

TEST(TrunkOps, CrossEntropyOfATargetOutsideIsNotANumber) {
  const Stream stream;
  Gemm gemm;
  const auto hidden = to_device<float>(normal(2 * 8, 1, 1)),
             table = to_device<float>(normal(80, 1, 2));
  const auto targets = to_device<int32_t>(std::vector<int32_t>{3, 10});
  auto loss = to_device<double>(std::vector<double>{0});
  CrossEntropyWorkspace<float> workspace;
  cross_entropy<float>(gemm, {2, 8, 10, hidden.data(), table.data(), targets.data()}, loss.data(),
                       workspace, stream);
  EXPECT_TRUE(std::isnan(from_device<double>(loss, stream)[0]));
}

TEST(TrunkOps, EmbeddingBothWays) {
  const Stream stream;
  EmbeddingWorkspace workspace;
  struct Case {
    int64_t n, vocab, d, distinct;
  };
  // Few, many and one distinct token: runs shorter than a chunk, over several, over all.
  for (const auto& [n, vocab, d, distinct] : {Case{1, 5, 8, 5},
                                              {64, 3, 16, 1},
                                              {1000, 300, 24, 300},
                                              {2000, 20, 256, 4},
                                              {700, 50000, 1032, 50000},
                                              {640, 7, 8, 1}}) {
    auto tokens = uniform_ids(n, distinct, 1);
    const auto table = normal(vocab * d, 1.0f, 2), g = normal(n * d, 1.0f, 3);
    auto out = zeros(n * d), d_table = table;
    scheduler::embedding_forward(tokens, view(table, d), view(out, d));
    scheduler::embedding_backward(tokens, view(g, d), view(d_table, d));
    const auto dtokens = to_device<int32_t>(tokens);
    const auto dtable = to_device<float>(table), dg = to_device<float>(g);
    DeviceBuffer<float> dout(n * d);
    embedding_forward(dtokens.data(), dtable.data(), n, vocab, d, dout.data(), stream);
    EXPECT_EQ(from_device<float>(dout, stream), out);
    auto gradient = to_device<float>(table), again = to_device<float>(table);
    embedding_backward(dtokens.data(), dg.data(), n, vocab, d, gradient.data(), workspace, stream);
    EXPECT_LT(relative_distance(from_device<float>(gradient, stream), d_table), 1e-6) << n;
    embedding_backward(dtokens.data(), dg.data(), n, vocab, d, again.data(), workspace, stream);
    EXPECT_EQ(from_device<float>(gradient, stream), from_device<float>(again, stream));
  }
}

TEST(TrunkOps, EmbeddingLeavesTokensOutsideOut) {
  const Stream stream;
  EmbeddingWorkspace workspace;
  const std::vector<int32_t> tokens = {-1, 2, 5, 2};
  const auto dtokens = to_device<int32_t>(tokens);
  const auto table = to_device<float>(std::vector<float>(5 * 8, 1.0f));
  DeviceBuffer<float> out(4 * 8);
  embedding_forward(dtokens.data(), table.data(), 4, 5, 8, out.data(), stream);
  const auto rows = from_device<float>(out, stream);
  EXPECT_TRUE(std::isnan(rows[0]) && std::isnan(rows[2 * 8]));
  EXPECT_EQ(rows[8], 1.0f);
  auto gradient = to_device<float>(zeros(5 * 8));
  const auto g = to_device<float>(std::vector<float>(4 * 8, 3.0f));
  embedding_backward(dtokens.data(), g.data(), 4, 5, 8, gradient.data(), workspace, stream);
  auto expected = zeros(5 * 8);
  for (int i = 0; i < 8; ++i) expected[2 * 8 + i] = 6.0f;
  EXPECT_EQ(from_device<float>(gradient, stream), expected);
}

TEST(TrunkOps, NothingHappensWithoutTokens) {
  const Stream stream;
  Gemm gemm;
  ColumnSums columns;
  EmbeddingWorkspace embed;
  CrossEntropyWorkspace<float> workspace;
  auto loss = to_device<double>(std::vector<double>{4});
  DeviceBuffer<float> none;
  rms_norm_forward<float>(nullptr, nullptr, nullptr, 1e-5f, 0, 8, nullptr, nullptr, nullptr,
                          stream);
  rms_norm_backward<float, float>(nullptr, nullptr, nullptr, nullptr, 0, 8, nullptr, nullptr,
                                  nullptr, nullptr, columns, stream);
  embedding_backward(nullptr, nullptr, 0, 5, 8, nullptr, embed, stream);
  cross_entropy_backward<float>(gemm, {0, 8, 10, nullptr, nullptr, nullptr}, 1.0f, loss.data(),
                                nullptr, nullptr, workspace, stream);
  EXPECT_EQ(from_device<double>(loss, stream)[0], 4.0);
}

TEST(TrunkOps, RefusesWidthsThatADeviceCannotTake) {
  const Stream stream;
  DeviceBuffer<float> x(100);
  EXPECT_THROW(rms_norm_forward<float>(x.data(), nullptr, x.data(), 1e-5f, 1, 12, x.data(),
                                       x.data(), x.data(), stream),
               Error);
  EXPECT_THROW(DeviceRope(4, 12, 100.0f), Error);
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
