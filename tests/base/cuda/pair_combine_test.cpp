// Tiles of selected pairs and the sums over them, against plain loops on exact data.

#include "comm/base/cuda/pair_combine.hpp"

#include <set>

#include <gtest/gtest.h>

#include "base/cuda/routed_case.hpp"
#include "comm/base/error.hpp"

namespace airmoe::cuda::testing {
namespace {

const std::vector<RoutedShape> kShapes = {
    {.tokens = 1, .codewords = 3, .length = 5, .active = 1, .rows = 9},
    {.tokens = 33, .codewords = 1, .length = 33, .active = 7, .rows = 40},
    {.tokens = 200, .codewords = 9, .length = 130, .active = 32, .rows = 500},
    {.tokens = 97, .codewords = 40, .length = 300, .active = 130, .rows = 700, .narrow = true},
    {.tokens = 70, .codewords = 3, .length = 64, .active = 64, .rows = 64, .one_codeword = true},
};

std::string name(const RoutedShape& s) {
  return fmt::format("{} tokens, {} codewords, K {} of {}", s.tokens, s.codewords, s.active,
                     s.length);
}

/// Every bit belongs to a pair and every pair has its bit, in the tile's numbering of candidates.
void expect_tiles(const RoutedShape& shape) {
  SCOPED_TRACE(name(shape));
  const Stream stream;
  const RoutedCase c(shape);
  const DeviceCase device(c, stream);
  DevicePairTiles tiles;
  tiles.build(device.tokens(), device.lists(), device.position(), shape.active, stream);
  const PairTiles view = tiles.view();
  const int64_t limit = device.tokens().tile_limit, words = view.width / 32;
  const auto used = from_device(view.used, limit, stream);
  const auto row = from_device(view.row, limit * view.width, stream);
  const auto mask = from_device(view.mask, limit * view.width, stream);
  const auto first = from_device(view.first, limit * view.width, stream);
  for (int64_t tile = 0; tile < c.tiles[0]; ++tile) {
    std::set<int32_t> rows;
    for (int64_t p = c.tile_begin[tile] * shape.active; p < c.tile_end[tile] * shape.active; ++p) {
      rows.insert(c.row(p));
    }
    ASSERT_EQ(used[tile], static_cast<int32_t>(rows.size()));
    const int32_t* tile_row = row.data() + tile * view.width;
    EXPECT_TRUE(std::equal(rows.begin(), rows.end(), tile_row));
    const int64_t padded = (used[tile] + kTileChunk - 1) / kTileChunk * kTileChunk;
    for (int64_t i = used[tile]; i < padded; ++i) EXPECT_EQ(tile_row[i], -1);
    for (int t = 0; t < kTileTokens; ++t) {
      const int64_t place = c.tile_begin[tile] + t;
      int64_t pair = 0;
      for (int64_t w = 0; w < padded / 32; ++w) {
        const int64_t at = (tile * words + w) * 32 + t;
        if (place < c.tile_end[tile]) {
          ASSERT_EQ(first[at], pair) << "token " << t << " word " << w;
        }
        for (int bit = 0; bit < 32; ++bit) {
          if ((mask[at] >> bit & 1) == 0) continue;
          ASSERT_LT(place, c.tile_end[tile]);
          ASSERT_EQ(tile_row[w * 32 + bit], c.row(place * shape.active + pair));
          ++pair;
        }
      }
      ASSERT_EQ(pair, place < c.tile_end[tile] ? shape.active : 0);
    }
  }
}

TEST(PairTiles, HoldEveryPairOnce) {
  for (const RoutedShape& shape : kShapes) expect_tiles(shape);
}

TEST(PairTiles, HoldLongListsToo) {  // too long for shared memory
  expect_tiles({.tokens = 40, .codewords = 2, .length = 40000, .active = 1000, .rows = 60000});
}

template <class T>
struct TermData {
  std::vector<float> coefficient, table;
  int64_t units;
  DeviceBuffer<float> device_coefficient;
  DeviceBuffer<T> device_table;

  TermData(const RoutedShape& s, int64_t d, int64_t m, uint32_t seed, cudaStream_t stream)
      : coefficient(random_integers(s.tokens * s.active * m, 4, seed)),
        table(random_integers(s.rows * m * d, 4, seed + 1)),
        units(m) {
    upload_as(device_coefficient, coefficient, stream);
    upload_as(device_table, table, stream);
  }
};

template <class T>
void expect_exact_sums(const RoutedShape& shape, int64_t d, const std::vector<int64_t>& units) {
  SCOPED_TRACE(fmt::format("{}, d {}, {} terms, {} units", name(shape), d, units.size(), units[0]));
  const Stream stream;
  const RoutedCase c(shape);
  const DeviceCase device(c, stream);
  DevicePairTiles tiles;
  tiles.build(device.tokens(), device.lists(), device.position(), shape.active, stream);
  std::vector<TermData<T>> data;
  std::vector<CombineTerm<T>> terms;
  for (const int64_t m : units) {
    data.emplace_back(shape, d, m, static_cast<uint32_t>(10 + 2 * data.size()), stream);
    terms.push_back({data.back().device_coefficient.data(), data.back().device_table.data(), m});
  }
  std::vector<float> expected(static_cast<std::size_t>(shape.tokens * d), 0.0f);
  for (const auto& term : data) {
    for (int64_t p = 0; p < c.pairs(); ++p) {
      for (int64_t j = 0; j < term.units; ++j) {
        for (int64_t k = 0; k < d; ++k) {
          expected[c.token_of(p) * d + k] += term.coefficient[p * term.units + j] *
                                             term.table[(c.row(p) * term.units + j) * d + k];
        }
      }
    }
  }
  DeviceBuffer<float> out;
  out.upload(std::vector<float>(expected.size(), NAN), stream);
  combine_pairs<T>(tiles.view(), terms, d, out.data(), stream);
  EXPECT_EQ(from_device(out, stream), expected);
}

TEST(PairCombine, SumsIntegersExactly) {
  for (const RoutedShape& shape : kShapes) {
    for (const int64_t d : {8, 72, 256}) {
      expect_exact_sums<float>(shape, d, {1});
      expect_exact_sums<__nv_bfloat16>(shape, d, {1});
      expect_exact_sums<__nv_bfloat16>(shape, d, {1, 1});
    }
    expect_exact_sums<float>(shape, 136, {3, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 136, {3, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 64, {2, 2, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 64, {8, 1, 24});
  }
}

TEST(PairCombine, NoTokensNoWork) {
  expect_exact_sums<float>({.tokens = 0, .codewords = 2, .length = 4, .active = 2, .rows = 8}, 64,
                           {1});
}

TEST(PairCombine, NamesTheOptionOfABadWidth) {
  const CombineTerm<float> term;
  try {
    combine_pairs<float>({}, {&term, 1}, 20, nullptr, nullptr);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--dim 20"), std::string::npos);
  }
}

}  // namespace
}  // namespace airmoe::cuda::testing
