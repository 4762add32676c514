// The codebook on a device against router::Codebook and the draws of the host, bit for bit.

#include "router/cuda/codebook.hpp"

#include <gtest/gtest.h>

#include "router/cuda/routed_data.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::router::test::matrix;

/// What scheduler::CodebookStep does on one rank, with given codewords of tokens.
class HostStep {
 public:
  HostStep(Codebook& codebook, const std::vector<float>& hidden, int64_t tokens)
      : codebook_(codebook), hidden_(hidden), tokens_(tokens), dim_(codebook.config().dim) {}

  void initialise(const RandomStream& stream) {
    const int64_t g = codebook_.config().codewords;
    const auto rows = fetch(stream, g);
    const float share = static_cast<float>(tokens_) / static_cast<float>(g);
    codebook_.initialise(matrix(rows, g, dim_), std::max(1.0f, share));
  }
  std::vector<int32_t> update(const std::vector<int32_t>& codeword, const RandomStream& stream) {
    std::vector<int64_t> statistics(codebook_.statistics_size(), 0);
    codebook_.collect(matrix(hidden_, tokens_, dim_), codeword, statistics);
    std::vector<int32_t> dead;
    codebook_.update(statistics, dead);
    if (std::ssize(dead) > tokens_) dead.resize(tokens_);
    const auto rows = fetch(stream, std::ssize(dead));
    codebook_.replace(dead, matrix(rows, std::ssize(dead), dim_));
    return dead;
  }

 private:
  std::vector<float> fetch(const RandomStream& stream, int64_t count) const {
    std::vector<float> rows(count * dim_, 0.0f);
    const RandomPermutation permutation(stream, static_cast<uint64_t>(tokens_));
    for (int64_t i = 0; i < count; ++i) {
      const auto token = permutation(static_cast<uint64_t>(i % tokens_));
      for (int64_t k = 0; k < dim_; ++k) rows[i * dim_ + k] += hidden_[token * dim_ + k];
    }
    return rows;
  }

  Codebook& codebook_;
  const std::vector<float>& hidden_;
  int64_t tokens_, dim_;
};

void expect_same(Codebook& a, Codebook& b) {
  const auto all = [](Matrix m) { return std::vector<float>(m.data, m.data + m.rows * m.cols); };
  const auto span = [](std::span<const float> s) { return std::vector<float>(s.begin(), s.end()); };
  EXPECT_EQ(test::bits(all(a.codewords())), test::bits(all(b.codewords())));
  EXPECT_EQ(test::bits(all(a.sums())), test::bits(all(b.sums())));
  EXPECT_EQ(test::bits(span(a.counts())), test::bits(span(b.counts())));
}

/// Tokens of clusters; some of zero, infinite and tiny norm.
std::vector<float> clustered(airmoe::router::test::Random& random, int64_t n, int64_t d) {
  const auto centre = random.normals(5 * d);
  std::vector<float> x(n * d);
  for (int64_t t = 0; t < n; ++t) {
    const float* c = centre.data() + random.integer(0, 4) * d;
    for (int64_t k = 0; k < d; ++k) x[t * d + k] = 3.0f * c[k] + 0.5f * random.normal();
    if (t % 53 == 7) std::fill_n(x.begin() + t * d, d, t % 2 == 0 ? 0.0f : -0.0f);
    if (t % 97 == 11) x[t * d + 1] = std::numeric_limits<float>::infinity();
  }
  return x;
}

struct Shape {
  int64_t tokens, codewords, dim;
};
constexpr Shape kShapes[] = {{1, 1, 8},       {40, 3, 16},    {7, 20, 64},
                             {1000, 37, 256}, {300, 300, 24}, {500, 8, 1024}};

template <class T>
void compare(const Shape& s) {
  const test::Stream stream;
  airmoe::router::test::Random random(static_cast<uint32_t>(s.tokens * 31 + s.dim));
  const CodebookConfig config{s.codewords, s.dim, 0.1f, 1.0f};
  Codebook expected(config), found(config);
  DeviceCodebook<T> device(config);
  int64_t restarted = 0;
  for (uint32_t step = 0; step < 4; ++step) {
    const auto full = clustered(random, s.tokens, s.dim);
    const auto hidden = test::through<T>(full);
    test::DeviceBuffer<T> on_device;
    on_device.upload(test::rounded<T>(full), stream);
    HostStep host(expected, hidden, s.tokens);
    if (step == 0) {
      const RandomStream draws(3, Purpose::codebook_init);
      host.initialise(draws);
      device.initialise(on_device.data(), s.tokens, draws, stream);
      device.download(found, stream);
      expect_same(found, expected);
    }
    const auto codeword = test::skewed_codewords(random, s.tokens, s.codewords);
    const test::RoutedTokens routed(codeword, s.codewords, stream);
    const RandomStream draws(3, Purpose::codeword_replacement, step);
    const auto dead = host.update(codeword, draws);
    device.update(on_device.data(), routed.view(), draws, stream);
    device.download(found, stream);
    expect_same(found, expected);
    const auto count = test::download(device.dead().count, 1, stream)[0];
    ASSERT_EQ(count, std::ssize(dead));
    EXPECT_EQ(test::download(device.dead().id, count, stream), dead);
    restarted += count;
    const auto compute = test::download(device.compute(), s.codewords * s.dim, stream);
    for (int64_t i = 0; i < std::ssize(compute); ++i) {
      ASSERT_EQ(static_cast<float>(compute[i]),
                static_cast<float>(T(expected.codewords().data[i])));
    }
  }
  if (s.codewords > 2) {
    EXPECT_GT(restarted, 0);
  }
}

TEST(DeviceCodebook, SameBitsAsOnTheHost) {
  for (const Shape& shape : kShapes) compare<float>(shape);
}

TEST(DeviceCodebook, SameBitsFromRoundedTokens) {
  for (const Shape& shape : kShapes) compare<__nv_bfloat16>(shape);
}

// Two ranks, whose all-reduces are made here by hand.
TEST(DeviceCodebook, SeveralRanksEndWithTheBitsOfOne) {
  const test::Stream stream;
  airmoe::router::test::Random random(9);
  const int64_t n = 300, g = 40, d = 32, split = 110;
  const CodebookConfig config{g, d, 0.1f, 1.0f};
  const auto hidden = clustered(random, n, d);
  const auto codeword = test::skewed_codewords(random, n, g);
  test::DeviceBuffer<float> on_device;
  on_device.upload(hidden, stream);
  const RandomStream init(1, Purpose::codebook_init), draws(1, Purpose::codeword_replacement);

  DeviceCodebook<float> whole(config),
      part[2]{DeviceCodebook<float>(config), DeviceCodebook<float>(config)};
  const int64_t begin[3] = {0, split, n};
  const auto local = [&](int r) { return on_device.data() + begin[r] * d; };
  const auto all_reduce = [&]<class U>(U* a, U* b, int64_t size) {
    auto x = test::download(a, size, stream), y = test::download(b, size, stream);
    for (int64_t i = 0; i < size; ++i) x[i] += y[i];
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(U);
    AIRMOE_CUDA(cudaMemcpy(a, x.data(), bytes, cudaMemcpyHostToDevice));
    AIRMOE_CUDA(cudaMemcpy(b, x.data(), bytes, cudaMemcpyHostToDevice));
  };

  const test::RoutedTokens all(codeword, g, stream);
  whole.initialise(on_device.data(), n, init, stream);
  whole.update(on_device.data(), all.view(), draws, stream);

  for (int r = 0; r < 2; ++r) {
    part[r].fetch_initial(local(r), begin[r + 1] - begin[r], begin[r], n, init, stream);
  }
  all_reduce(part[0].fetched(), part[1].fetched(), part[0].fetched_size());
  for (int r = 0; r < 2; ++r) {
    part[r].initialise_from_fetched(n, stream);
    const test::RoutedTokens routed({codeword.begin() + begin[r], codeword.begin() + begin[r + 1]},
                                    g, stream);
    part[r].collect(local(r), routed.view(), stream);
    stream.synchronize();
  }
  all_reduce(part[0].statistics(), part[1].statistics(), part[0].statistics_size());
  for (int r = 0; r < 2; ++r) {
    part[r].advance(n, stream);
    part[r].fetch(local(r), begin[r + 1] - begin[r], begin[r], n, draws, stream);
  }
  all_reduce(part[0].fetched(), part[1].fetched(), part[0].fetched_size());
  Codebook expected(config), found(config);
  whole.download(expected, stream);
  EXPECT_GT(test::download(whole.dead().count, 1, stream)[0], 0);
  for (int r = 0; r < 2; ++r) {
    part[r].replace(stream);
    part[r].download(found, stream);
    expect_same(found, expected);
  }
}

TEST(DeviceCodebook, NoTokensOnlyDecay) {
  const test::Stream stream;
  const CodebookConfig config{3, 8, 0.5f, 1.0f};
  Codebook host(config), found(config);
  for (float& n : host.counts()) n = 4.0f;
  DeviceCodebook<float> device(config);
  device.upload(host, stream);
  const test::RoutedTokens routed({}, 3, stream);
  const RandomStream draws(1, Purpose::codeword_replacement);
  for (const float expected : {2.0f, 1.0f, 0.5f}) {
    device.update(nullptr, routed.view(), draws, stream);
    device.download(found, stream);
    for (const float n : found.counts()) EXPECT_EQ(n, expected);
    EXPECT_EQ(test::download(device.dead().count, 1, stream)[0], 0);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
