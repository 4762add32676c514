#include "router/cuda/order.hpp"

#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "router/cuda/device_data.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::kTileTokens;
using test::Random;
using test::Stream;

void check(DeviceOrder& order, const std::vector<int32_t>& codeword, int64_t codewords,
           const Stream& stream) {
  const int64_t n = std::ssize(codeword);
  SCOPED_TRACE(::testing::Message() << "n " << n << " codewords " << codewords);
  const auto input = test::to_device(codeword, stream);
  order.build(input.data(), n, codewords, stream);
  const airmoe::cuda::CodewordTokens view = order.view();
  ASSERT_EQ(view.tokens, n);
  ASSERT_EQ(view.codewords, codewords);
  ASSERT_EQ(view.tile_limit, airmoe::cuda::max_tiles(n, codewords));

  std::vector<int32_t> expected(n), begin(codewords + 1, 0);
  std::iota(expected.begin(), expected.end(), 0);
  std::stable_sort(expected.begin(), expected.end(),
                   [&](int32_t a, int32_t b) { return codeword[a] < codeword[b]; });
  for (const int32_t g : codeword) ++begin[g + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  EXPECT_EQ(test::to_host(view.token, n, stream), expected);
  EXPECT_EQ(test::to_host(view.begin, codewords + 1, stream), begin);

  std::vector<int32_t> tile_codeword, tile_begin, tile_end;
  for (int64_t g = 0; g < codewords; ++g) {
    for (int32_t at = begin[g]; at < begin[g + 1]; at += kTileTokens) {
      tile_codeword.push_back(static_cast<int32_t>(g));
      tile_begin.push_back(at);
      tile_end.push_back(std::min(at + kTileTokens, begin[g + 1]));
    }
  }
  const int64_t tiles = test::to_host(view.tiles, 1, stream)[0];
  ASSERT_EQ(tiles, std::ssize(tile_begin));
  ASSERT_LE(tiles, view.tile_limit);
  EXPECT_EQ(test::to_host(view.tile_codeword, tiles, stream), tile_codeword);
  EXPECT_EQ(test::to_host(view.tile_begin, tiles, stream), tile_begin);
  EXPECT_EQ(test::to_host(view.tile_end, tiles, stream), tile_end);
}

TEST(DeviceOrder, IsAStableSortCutIntoTiles) {
  const Stream stream;
  Random random(1);
  DeviceOrder order;  // reused: buffers shrink and grow
  for (const int64_t n : {1000, 0, 1, 255, 256, 257, 8192, 16384, 40000}) {
    for (const int64_t codewords : {1, 7, 512, 5000, 20000}) {
      std::vector<int32_t> codeword(n);
      for (auto& g : codeword) {  // squared: many tokens on few codewords
        const double x = static_cast<double>(random.integer(0, 9999)) / 10000.0;
        g = static_cast<int32_t>(x * x * static_cast<double>(codewords));
      }
      check(order, codeword, codewords, stream);
    }
  }
}

TEST(DeviceOrder, AllTokensOnOneCodeword) {
  const Stream stream;
  DeviceOrder order;
  for (const int64_t n : {32, 33, 9000, 20000}) {
    check(order, std::vector<int32_t>(n, 0), 512, stream);
    check(order, std::vector<int32_t>(n, 300), 512, stream);
    check(order, std::vector<int32_t>(n, 511), 512, stream);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
