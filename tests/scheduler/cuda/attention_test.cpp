#include "scheduler/cuda/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include "comm/base/cuda/stream.hpp"
#include "scheduler/trunk/causal_attention.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::Stream;
using Bf16 = __nv_bfloat16;

float to_float(float x) {
  return x;
}
float to_float(Bf16 x) {
  return __bfloat162float(x);
}
void assign(float& to, float x) {
  to = x;
}
void assign(Bf16& to, float x) {
  to = __float2bfloat16(x);
}

/// Numbers that T can hold, as T and as float.
template <class T>
struct Array {
  std::vector<T> exact;
  std::vector<float> value;

  Array() = default;
  Array(int64_t count, float spread, unsigned seed) : exact(count), value(count) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    for (int64_t i = 0; i < count; ++i) {
      assign(exact[i], normal(generator));
      value[i] = to_float(exact[i]);
    }
  }
};

/// Queries, keys and values are slices of one matrix.
template <class T>
struct Case {
  AttentionShape shape;
  int64_t width, q_columns, kv_columns, rows;
  Array<T> qkv, d_out;

  explicit Case(const AttentionShape& s)
      : shape(s),
        width((s.heads + 2 * s.kv_heads) * s.head_dim),
        q_columns(s.heads * s.head_dim),
        kv_columns(s.kv_heads * s.head_dim),
        rows(s.sequences * s.context),
        qkv(rows * width, 1.3f, 1),
        d_out(rows * q_columns, 1.0f, 2) {}
};

struct Result {
  std::vector<float> out, log_sum, d_qkv;
  bool operator==(const Result&) const = default;
};

template <class T>
std::vector<float> to_host(const DeviceBuffer<T>& from, const Stream& stream) {
  std::vector<T> raw(from.size());
  from.download(raw, stream);
  stream.synchronize();
  std::vector<float> value(raw.size());
  std::transform(raw.begin(), raw.end(), value.begin(), [](T x) { return to_float(x); });
  return value;
}

template <class T>
Result on_device(const Case<T>& c, const Stream& stream) {
  DeviceBuffer<T> qkv, d_out, out(c.rows * c.q_columns), d_qkv(c.rows * c.width);
  DeviceBuffer<float> log_sum(c.rows * c.shape.heads);
  qkv.upload(c.qkv.exact, stream);
  d_out.upload(c.d_out.exact, stream);
  AttentionWorkspace workspace;
  const T* q = qkv.data();
  const T* k = q + c.q_columns;
  const T* v = k + c.kv_columns;
  T* d_q = d_qkv.data();
  T* d_k = d_q + c.q_columns;
  T* d_v = d_k + c.kv_columns;
  causal_attention_forward(c.shape, q, k, v, c.width, c.width, c.width, out.data(), log_sum.data(),
                           workspace, stream);
  causal_attention_backward(c.shape, q, k, v, c.width, c.width, c.width, out.data(), log_sum.data(),
                            d_out.data(), d_q, d_k, d_v, c.width, c.width, c.width, workspace,
                            stream);
  return {to_host(out, stream), to_host(log_sum, stream), to_host(d_qkv, stream)};
}

/// One head of one sequence in double precision, written out.
template <class T>
void oracle_head(const Case<T>& c, int64_t sequence, int64_t head, std::vector<double>& out,
                 std::vector<double>& log_sum, std::vector<double>& d_qkv) {
  const int64_t context = c.shape.context, hd = c.shape.head_dim;
  const int64_t kv = head / (c.shape.heads / c.shape.kv_heads);
  const auto at = [&](int64_t t, int64_t column) {
    return (sequence * context + t) * c.width + column;
  };
  const int64_t q = head * hd, k = c.q_columns + kv * hd, v = c.q_columns + c.kv_columns + kv * hd;
  const double scale = 1.0 / std::sqrt(static_cast<double>(hd));
  const std::vector<float>& x = c.qkv.value;
  std::vector<double> p(context), d_p(context);
  for (int64_t t = 0; t < context; ++t) {
    double top = -1e300, total = 0.0, mean = 0.0;
    for (int64_t u = 0; u <= t; ++u) {
      p[u] = 0.0;
      for (int64_t i = 0; i < hd; ++i) p[u] += scale * x[at(t, q + i)] * x[at(u, k + i)];
      top = std::max(top, p[u]);
    }
    for (int64_t u = 0; u <= t; ++u) total += std::exp(p[u] - top);
    const double normaliser = top + std::log(total);
    log_sum[(sequence * c.shape.heads + head) * context + t] = normaliser;
    const int64_t row = (sequence * context + t) * c.q_columns + head * hd;
    for (int64_t u = 0; u <= t; ++u) {
      p[u] = std::exp(p[u] - normaliser);
      d_p[u] = 0.0;
      for (int64_t i = 0; i < hd; ++i) {
        out[row + i] += p[u] * x[at(u, v + i)];
        d_p[u] += static_cast<double>(c.d_out.value[row + i]) * x[at(u, v + i)];
        d_qkv[at(u, v + i)] += p[u] * c.d_out.value[row + i];
      }
      mean += p[u] * d_p[u];
    }
    for (int64_t u = 0; u <= t; ++u) {
      const double d_score = scale * p[u] * (d_p[u] - mean);
      for (int64_t i = 0; i < hd; ++i) {
        d_qkv[at(t, q + i)] += d_score * x[at(u, k + i)];
        d_qkv[at(u, k + i)] += d_score * x[at(t, q + i)];
      }
    }
  }
}

struct Oracle {
  std::vector<double> out, log_sum, d_qkv;
};

template <class T>
Oracle oracle(const Case<T>& c) {
  Oracle o{std::vector<double>(c.rows * c.q_columns), std::vector<double>(c.rows * c.shape.heads),
           std::vector<double>(c.rows * c.width)};
  // By all processor cores; heads that share gradients on one.
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    const int64_t group = c.shape.heads / c.shape.kv_heads;
    for (int64_t i; (i = next++) < c.shape.sequences * c.shape.kv_heads;) {
      const int64_t first = i % c.shape.kv_heads * group;
      for (int64_t h = first; h < first + group; ++h) {
        oracle_head(c, i / c.shape.kv_heads, h, o.out, o.log_sum, o.d_qkv);
      }
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  return o;
}

/// The largest error is at most `bound` times the largest true number.
template <class A, class B>
void expect_close(const std::vector<A>& actual, const std::vector<B>& expected, double bound,
                  const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  double largest = 0.0, error = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << what << " at " << i;
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    error = std::max(error, std::abs(static_cast<double>(actual[i]) - expected[i]));
  }
  EXPECT_LE(error, bound * largest) << what << ": error " << error << " of " << largest;
}

/// Ragged and whole tiles, one to many query heads per key head, head sizes that fill their tile
/// and that do not; many short sequences, where query heads are summed in one block or in two
/// parts; more tiles than an H100 takes at a time; head sizes of all kernels.
const AttentionShape kShapes[] = {
    {1, 1, 1, 1, 64},    {2, 63, 4, 1, 64},    {1, 64, 2, 1, 64},  {2, 130, 6, 2, 32},
    {1, 129, 2, 2, 128}, {3, 100, 6, 2, 16},   {1, 131, 4, 4, 8},  {1, 77, 3, 1, 96},
    {2, 257, 8, 2, 64},  {1, 321, 2, 1, 128},  {520, 3, 2, 1, 16}, {256, 5, 4, 1, 8},
    {1, 500, 3, 3, 48},  {264, 130, 1, 1, 64}, {88, 70, 6, 2, 24}, {528, 40, 1, 1, 128},
    {2, 191, 4, 2, 72},  {1, 300, 6, 3, 80},   {3, 129, 4, 1, 96}, {2, 450, 6, 2, 128},
    {70, 130, 2, 1, 72}, {1, 193, 2, 2, 40},   {2, 65, 3, 1, 56},  {1, 260, 4, 2, 112},
};

std::string name_of(const AttentionShape& s) {
  return fmt::format("{} x {}, heads {} / {}, head_dim {}", s.sequences, s.context, s.heads,
                     s.kv_heads, s.head_dim);
}

template <class T>
class DeviceAttention : public testing::Test {};
using Types = testing::Types<float, Bf16>;
TYPED_TEST_SUITE(DeviceAttention, Types);

TYPED_TEST(DeviceAttention, EqualsDoublePrecision) {
  const Stream stream;
  constexpr bool kExact = std::is_same_v<TypeParam, float>;
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(name_of(shape));
    const Case<TypeParam> c(shape);
    const Result result = on_device(c, stream);
    const Oracle expected = oracle(c);
    expect_close(result.log_sum, expected.log_sum, kExact ? 1e-6 : 1e-5, "log_sum");
    expect_close(result.out, expected.out, kExact ? 2e-6 : 6e-3, "out");
    expect_close(result.d_qkv, expected.d_qkv, kExact ? 1e-5 : 1.5e-2, "gradients");
  }
}

TYPED_TEST(DeviceAttention, RepeatsItsBits) {
  const Stream stream;
  for (const int64_t head_dim : {32, 64, 128}) {
    const Case<TypeParam> c({20, 400, 12, 4, head_dim});
    EXPECT_EQ(on_device(c, stream), on_device(c, stream)) << head_dim;
  }
}

TYPED_TEST(DeviceAttention, DoesNothingWithoutTokens) {
  const Stream stream;
  EXPECT_TRUE(on_device(Case<TypeParam>({0, 64, 2, 1, 64}), stream).out.empty());
}

TYPED_TEST(DeviceAttention, NamesTheOptionForHeadsThatDoNotFit) {
  const Stream stream;
  for (const int64_t head_dim : {4, 12, 136}) {
    try {
      on_device(Case<TypeParam>({1, 8, 2, 1, head_dim}), stream);
      FAIL() << head_dim;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("--heads"), std::string::npos) << error.what();
    }
  }
}

/// Longer rows than double precision has time for, on numbers that bf16 can hold: the bounds are
/// those of bf16 against double precision.
TEST(DeviceAttentionBf16, EqualsTheFloatKernels) {
  const Stream stream;
  for (const AttentionShape& shape : {AttentionShape{1, 2000, 2, 1, 32},
                                      {2, 1024, 8, 2, 64},
                                      {1, 1500, 12, 4, 96},
                                      {3, 1025, 4, 2, 128},
                                      {8, 512, 16, 2, 80}}) {
    SCOPED_TRACE(name_of(shape));
    const Case<Bf16> c(shape);
    Case<float> wide(shape);
    wide.qkv.exact = wide.qkv.value = c.qkv.value;
    wide.d_out.exact = wide.d_out.value = c.d_out.value;
    const Result result = on_device(c, stream), expected = on_device(wide, stream);
    expect_close(result.log_sum, expected.log_sum, 1e-5, "log_sum");
    expect_close(result.out, expected.out, 6e-3, "out");
    expect_close(result.d_qkv, expected.d_qkv, 1.5e-2, "gradients");
  }
}

TEST(DeviceAttentionFloat, EqualsTheHost) {
  const Stream stream;
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(name_of(shape));
    const Case<float> c(shape);
    const Result result = on_device(c, stream);
    Result host{std::vector<float>(result.out.size()), std::vector<float>(result.log_sum.size()),
                std::vector<float>(result.d_qkv.size())};
    CausalAttentionScratch scratch;
    const CausalAttentionShape one{shape.context, shape.heads, shape.kv_heads, shape.head_dim};
    for (int64_t s = 0; s < shape.sequences; ++s) {
      const int64_t row = s * shape.context;
      const auto slice = [&](auto* data, int64_t column, int64_t columns) {
        return MatrixView(data + row * c.width + column, shape.context, columns, c.width);
      };
      const int64_t k = c.q_columns, v = k + c.kv_columns;
      const float* x = c.qkv.value.data();
      const ConstMatrix query = slice(x, 0, c.q_columns), key = slice(x, k, c.kv_columns),
                        value = slice(x, v, c.kv_columns);
      const Matrix out(host.out.data() + row * c.q_columns, shape.context, c.q_columns);
      float* log_sum = host.log_sum.data() + s * shape.heads * shape.context;
      causal_attention_forward(one, query, key, value, out, log_sum, scratch);
      float* d = host.d_qkv.data();
      causal_attention_backward(
          one, query, key, value, out, log_sum,
          ConstMatrix(c.d_out.value.data() + row * c.q_columns, shape.context, c.q_columns),
          slice(d, 0, c.q_columns), slice(d, k, c.kv_columns), slice(d, v, c.kv_columns), scratch);
    }
    expect_close(result.log_sum, host.log_sum, 1e-5, "log_sum");
    expect_close(result.out, host.out, 1e-5, "out");
    expect_close(result.d_qkv, host.d_qkv, 1e-5, "gradients");
  }
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
