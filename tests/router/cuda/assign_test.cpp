#include "router/cuda/assign.hpp"

#include <gtest/gtest.h>

#include "router/assign.hpp"
#include "router/cuda/device_data.hpp"

namespace airmoe::router::cuda {
namespace {

using test::Random;
using test::Stream;

template <class T>
std::vector<int32_t> assign(std::vector<float>& hidden, std::vector<float>& codebook, int64_t n,
                            int64_t d, int64_t codewords, const Stream& stream) {
  const auto device_hidden = test::to_device(test::rounded<T>(hidden), stream);
  const auto device_codebook = test::to_device(test::rounded<T>(codebook), stream);
  test::DeviceBuffer<int32_t> codeword(n);
  assign_codewords(device_hidden.data(), device_codebook.data(), n, d, codewords, codeword.data(),
                   stream);
  return test::to_host(codeword.data(), n, stream);
}

std::vector<int32_t> on_host(const std::vector<float>& hidden, const std::vector<float>& codebook,
                             int64_t n, int64_t d, int64_t codewords) {
  std::vector<int32_t> codeword(static_cast<std::size_t>(n));
  AssignWorkspace workspace;
  router::assign_codewords({hidden.data(), n, d}, {codebook.data(), codewords, d}, codeword,
                           workspace);
  return codeword;
}

TEST(DeviceAssign, FloatEqualsTheHost) {
  const Stream stream;
  Random random(1);
  for (const int64_t d : {8, 40, 96, 256}) {
    for (const int64_t codewords : {1, 5, 128, 300}) {
      for (const int64_t n : {0, 1, 31, 33, 200}) {
        const auto centre = test::centres(random, 20, d);
        auto hidden = test::clustered(random, centre, n, d, 1.0f, 10.0f);
        auto codebook = test::clustered(random, centre, codewords, d, 1.0f, 1.0f);
        const auto found = assign<float>(hidden, codebook, n, d, codewords, stream);
        ASSERT_EQ(found, on_host(hidden, codebook, n, d, codewords))
            << "n " << n << " d " << d << " codewords " << codewords;
      }
    }
  }
}

// Small integers are exact in bf16, and so are their sums: every tie counts. The numbers of tokens
// take blocks of 16, 32 and 64 of them.
template <class T>
void check_ties() {
  const Stream stream;
  Random random(2);
  for (const int64_t d : {8, 24, 64, 72, 256}) {
    for (const int64_t codewords : {1, 13, 512}) {
      for (const int64_t n : {1, 17, 3500, 7001}) {
        if (n > 1000 && d > 72) continue;
        auto hidden = random.integers(n * d, -1, 1);
        auto codebook = random.integers(codewords * d, -2, 2);
        const auto found = assign<T>(hidden, codebook, n, d, codewords, stream);
        ASSERT_EQ(found, on_host(hidden, codebook, n, d, codewords))
            << "n " << n << " d " << d << " codewords " << codewords;
      }
    }
  }
}
TEST(DeviceAssign, TiesGoToTheSmallerCodewordInFloat) {
  check_ties<float>();
}
TEST(DeviceAssign, TiesGoToTheSmallerCodewordInBf16) {
  check_ties<__nv_bfloat16>();
}

// As many tokens as warp-group products are used for; rows of whole and broken tiles.
TEST(DeviceAssign, TiesOfLongRowsGoToTheSmallerCodewordInBf16) {
  const Stream stream;
  Random random(5);
  for (const int64_t d : {256, 520, 1000, 1024}) {
    for (const int64_t codewords : {7, 300}) {
      const int64_t n = 3201;
      auto hidden = random.integers(n * d, -1, 1);
      auto codebook = random.integers(codewords * d, -1, 1);
      const auto found = assign<__nv_bfloat16>(hidden, codebook, n, d, codewords, stream);
      ASSERT_EQ(found, on_host(hidden, codebook, n, d, codewords))
          << "d " << d << " codewords " << codewords;
    }
  }
}

TEST(DeviceAssign, Bf16FindsTheLargestScoreUpToRounding) {
  const Stream stream;
  Random random(3);
  for (const int64_t d : {256, 1024, 4096, 16384}) {  // the last two leave room for fewer tokens
    const int64_t n = d > 1024 ? 40 : 500, codewords = 100;
    const auto centre = test::centres(random, 30, d);
    auto hidden = test::clustered(random, centre, n, d, 1.0f, 16.0f);
    auto codebook = test::clustered(random, centre, codewords, d, 1.0f, 1.0f);
    const auto found = assign<__nv_bfloat16>(hidden, codebook, n, d, codewords, stream);
    for (int64_t t = 0; t < n; ++t) {
      double largest = -1e30;
      for (int64_t g = 0; g < codewords; ++g) {
        largest = std::max(largest, router::test::dot(&hidden[t * d], &codebook[g * d], d));
      }
      ASSERT_GE(router::test::dot(&hidden[t * d], &codebook[found[t] * d], d), largest - 1e-4);
    }
  }
}

TEST(DeviceAssign, NotANumberGivesAValidCodeword) {
  const Stream stream;
  Random random(4);
  std::vector<float> hidden(5 * 64, std::numeric_limits<float>::quiet_NaN());
  auto codebook = random.normals(40 * 64);
  EXPECT_EQ(assign<float>(hidden, codebook, 5, 64, 40, stream), std::vector<int32_t>(5, 0));
  EXPECT_EQ(assign<__nv_bfloat16>(hidden, codebook, 5, 64, 40, stream), std::vector<int32_t>(5, 0));
  std::vector<float> many(4000 * 64, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(assign<__nv_bfloat16>(many, codebook, 4000, 64, 40, stream),
            std::vector<int32_t>(4000, 0));
}

TEST(DeviceAssign, SaysWhichWidthsItTakes) {
  const Stream stream;
  try {
    assign_codewords<float>(nullptr, nullptr, 10, 20, 4, nullptr, stream);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--dim 20"), std::string::npos);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
