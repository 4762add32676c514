// Pairs grouped by row and the sums over a row's pairs, against plain loops on exact data.

#include "comm/base/cuda/pair_accumulate.hpp"

#include <cmath>
#include <map>
#include <type_traits>

#include <gtest/gtest.h>

#include "base/cuda/routed_case.hpp"
#include "comm/base/cuda/wgmma.hpp"
#include "comm/base/error.hpp"

namespace airmoe::cuda::testing {
namespace {

const std::vector<RoutedShape> kShapes = {
    {.tokens = 1, .codewords = 3, .length = 5, .active = 1, .rows = 9},
    {.tokens = 200, .codewords = 9, .length = 130, .active = 32, .rows = 500},
    // Rows with more pairs than a segment, of many lengths and places.
    {.tokens = 700, .codewords = 2, .length = 64, .active = 64, .rows = 64, .one_codeword = true},
    {.tokens = 1500, .codewords = 3, .length = 9, .active = 5, .rows = 12},
    {.tokens = 3000, .codewords = 1, .length = 1, .active = 1, .rows = 1},
    {.tokens = 260, .codewords = 2, .length = 2, .active = 1, .rows = 70000},
};

std::string name(const RoutedShape& s) {
  return fmt::format("{} tokens, {} codewords, K {} of {}", s.tokens, s.codewords, s.active,
                     s.length);
}

/// Of the pairs [begin, end).
void expect_groups(const RoutedCase& c, int64_t begin, int64_t end, const PairGroups& view,
                   cudaStream_t stream) {
  ASSERT_EQ(view.pairs, end - begin);
  std::vector<int32_t> pair(static_cast<std::size_t>(end - begin));
  std::iota(pair.begin(), pair.end(), static_cast<int32_t>(begin));
  std::stable_sort(pair.begin(), pair.end(),
                   [&](int32_t a, int32_t b) { return c.row(a) < c.row(b); });
  std::vector<int32_t> row, offset(static_cast<std::size_t>(c.shape.rows + 1), 0);
  for (const int32_t p : pair) {
    row.push_back(c.row(p));
    ++offset[static_cast<std::size_t>(c.row(p) + 1)];
  }
  std::partial_sum(offset.begin(), offset.end(), offset.begin());
  EXPECT_EQ(from_device(view.pair, view.pairs, stream), pair);
  EXPECT_EQ(from_device(view.row, view.pairs, stream), row);
  EXPECT_EQ(from_device(view.offset, c.shape.rows + 1, stream), offset);
}

/// Calls expect(case, begin, end, view, stream) for the slices that `Pairs` makes of every shape.
template <class Pairs, class Expect>
void expect_slices(const Expect& expect) {
  const Stream stream;
  Pairs pairs;  // one object over growing and shrinking problems
  for (const RoutedShape& shape : kShapes) {
    SCOPED_TRACE(name(shape));
    const RoutedCase c(shape);
    const DeviceCase device(c, stream);
    for (const int64_t slice : {int64_t{0}, shape.tokens, shape.tokens / 3 + 1}) {
      pairs.build(device.tokens(), device.lists(), device.position(), shape.active, shape.rows,
                  stream, slice);
      int64_t begin = 0;
      for (const auto& view : pairs.slices()) {
        const int64_t end =
            slice == 0 ? c.pairs() : std::min(c.pairs(), begin + slice * shape.active);
        expect(c, begin, end, view, stream);
        begin = end;
      }
      EXPECT_EQ(begin, c.pairs());
    }
  }
}

TEST(PairGroups, AreTheStableSortByRow) {
  expect_slices<DevicePairGrouping>(expect_groups);
}

/// Of the pairs [begin, end): whole permutation of rows, order, and where bundles start.
void expect_bundles(const RoutedCase& c, int64_t begin, int64_t end, const PairBundles& view,
                    cudaStream_t stream) {
  ASSERT_EQ(view.pairs, end - begin);
  if (c.pairs() == 0) return;
  // (times the tile selected the row, codeword), the largest.
  std::vector<std::pair<int, int>> home(static_cast<std::size_t>(c.shape.rows), {0, -1});
  for (std::size_t tile = 0; tile < c.tile_begin.size(); ++tile) {
    std::map<int32_t, int> count;
    for (int64_t p = c.tile_begin[tile] * c.shape.active; p < c.tile_end[tile] * c.shape.active;
         ++p) {
      ++count[c.row(p)];
    }
    for (const auto& [row, times] : count) {
      auto& best = home[static_cast<std::size_t>(row)];
      best = std::max(best, std::pair(times, static_cast<int>(c.tile_codeword[tile])));
    }
  }
  std::vector<int32_t> row(static_cast<std::size_t>(c.shape.rows));
  std::iota(row.begin(), row.end(), 0);
  std::stable_sort(row.begin(), row.end(),
                   [&](int32_t a, int32_t b) { return home[a].second < home[b].second; });
  EXPECT_EQ(from_device(view.row, c.shape.rows, stream), row);
  std::vector<int32_t> rank_of(row.size());
  for (std::size_t i = 0; i < row.size(); ++i) rank_of[row[i]] = static_cast<int32_t>(i);

  std::vector<int32_t> pair(static_cast<std::size_t>(end - begin)), rank;
  std::iota(pair.begin(), pair.end(), static_cast<int32_t>(begin));
  const auto bundle = [&](int32_t p) { return rank_of[c.row(p)] / kBundleRows; };
  std::stable_sort(pair.begin(), pair.end(),
                   [&](int32_t a, int32_t b) { return bundle(a) < bundle(b); });
  std::vector<int32_t> offset(static_cast<std::size_t>(view.bundles() + 1), 0);
  for (const int32_t p : pair) {
    rank.push_back(rank_of[c.row(p)]);
    ++offset[static_cast<std::size_t>(bundle(p) + 1)];
  }
  std::partial_sum(offset.begin(), offset.end(), offset.begin());
  EXPECT_EQ(from_device(view.pair, view.pairs, stream), pair);
  EXPECT_EQ(from_device(view.rank, view.pairs, stream), rank);
  EXPECT_EQ(from_device(view.offset, view.bundles() + 1, stream), offset);
}

TEST(PairBundles, PutRowsOfTheSameCodewordTogether) {
  expect_slices<DevicePairBundles>(expect_bundles);
}

enum class By { row, bundle };

/// source[i] and units[i] of term i; sources are numbered.
/// @param slice         of DevicePairGrouping::build
/// @param some_written  a third of the rows hold no sums yet
template <class T>
void expect_exact_sums(const RoutedShape& shape, int64_t d, const std::vector<int>& source,
                       const std::vector<int64_t>& units, int64_t slice, bool some_written,
                       By by = By::row) {
  SCOPED_TRACE(fmt::format("{}, d {}, {} terms, {} units, slices of {}{}{}", name(shape), d,
                           units.size(), units[0], slice, some_written ? ", some written" : "",
                           by == By::bundle ? ", by bundles" : ""));
  const Stream stream;
  const RoutedCase c(shape);
  const DeviceCase device(c, stream);
  DevicePairGrouping grouping;
  DevicePairBundles bundles;
  const auto build = [&](auto& to) {
    to.build(device.tokens(), device.lists(), device.position(), shape.active, shape.rows, stream,
             slice);
  };
  by == By::bundle ? build(bundles) : build(grouping);
  std::vector<std::vector<float>> x, coefficient, expected;
  std::vector<DeviceBuffer<T>> device_x(2);
  std::vector<DeviceBuffer<float>> device_coefficient(units.size()), gradient(units.size());
  for (uint32_t i = 0; i < 2; ++i) {
    x.push_back(random_integers(shape.tokens * d, 4, 20 + i));
    upload_as(device_x[i], x[i], stream);
  }
  constexpr int32_t kNow = 6;
  std::vector<int32_t> number(static_cast<std::size_t>(shape.rows), kNow);
  if (some_written) {
    for (std::size_t r = 0; r < number.size(); r += 3) number[r] = static_cast<int32_t>(r % 5);
  }
  DeviceBuffer<int32_t> device_number;
  device_number.upload(number, stream);
  std::vector<AccumulateTerm<T>> terms;
  for (std::size_t i = 0; i < units.size(); ++i) {
    const int64_t m = units[i];
    coefficient.push_back(random_integers(c.pairs() * m, 4, static_cast<uint32_t>(30 + i)));
    expected.push_back(random_integers(shape.rows * m * d, 4, static_cast<uint32_t>(40 + i)));
    upload_as(device_coefficient[i], coefficient[i], stream);
    upload_as(gradient[i], expected[i], stream);
    terms.push_back({device_coefficient[i].data(),
                     device_x[static_cast<std::size_t>(source[i])].data(), gradient[i].data(), m});
    const std::vector<float>& from = x[static_cast<std::size_t>(source[i])];
    for (int64_t p = 0; p < c.pairs(); ++p) {  // what such rows held does not matter
      if (number[static_cast<std::size_t>(c.row(p))] == kNow) continue;
      std::fill_n(expected[i].begin() + c.row(p) * m * d, m * d, 0.0f);
    }
    for (int64_t p = 0; p < c.pairs(); ++p) {
      for (int64_t j = 0; j < m; ++j) {
        for (int64_t k = 0; k < d; ++k) {
          expected[i][(c.row(p) * m + j) * d + k] +=
              coefficient[i][p * m + j] * from[c.token_of(p) * d + k];
        }
      }
    }
  }
  AccumulateWorkspace workspace;
  WrittenRows written;
  if (some_written) written = {device_number.data(), kNow};
  if constexpr (!std::is_same_v<T, float>) {
    for (const PairBundles& view : bundles.slices()) {
      accumulate_bundles(view, terms, d, workspace, stream, written);
    }
  }
  for (const PairGroups& groups : grouping.slices()) {
    accumulate_pairs<T>(groups, terms, d, workspace, stream, written);
  }
  for (std::size_t i = 0; i < units.size(); ++i) {
    EXPECT_EQ(from_device(gradient[i], stream), expected[i]) << "term " << i;
  }
  if (!some_written) return;
  for (int64_t p = 0; p < c.pairs(); ++p) number[static_cast<std::size_t>(c.row(p))] = kNow;
  EXPECT_EQ(from_device(device_number, stream), number);
}

template <class T>
void expect_exact_sums(const RoutedShape& shape, int64_t d, const std::vector<int>& source,
                       const std::vector<int64_t>& units) {
  expect_exact_sums<T>(shape, d, source, units, 0, false);
  expect_exact_sums<T>(shape, d, source, units, 0, true);
  expect_exact_sums<T>(shape, d, source, units, shape.tokens / 3 + 1, true);
}

TEST(PairAccumulate, SumsIntegersExactly) {
  for (const RoutedShape& shape : kShapes) {
    const int64_t d = shape.rows > 1000 ? 8 : 136;
    expect_exact_sums<float>(shape, d, {0, 0, 1}, {1, 1, 1});
    expect_exact_sums<__nv_bfloat16>(shape, d, {0, 0, 1}, {1, 1, 1});
    expect_exact_sums<__nv_bfloat16>(shape, d, {0, 0, 0, 1}, {1, 1, 1, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 72, {0, 1}, {1, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 16, {1}, {1});
  }
}

TEST(PairAccumulate, SumsIntegersByBundles) {
  if (!has_wgmma()) GTEST_SKIP() << "no warp-group products on this device or in this build";
  for (const RoutedShape& shape : kShapes) {
    for (const int64_t d : {8, 136, 264}) {
      if (shape.rows > 1000 && d > 8) continue;
      const auto expect = [&](const std::vector<int>& source, int64_t slice, bool some_written) {
        expect_exact_sums<__nv_bfloat16>(shape, d, source, std::vector<int64_t>(source.size(), 1),
                                         slice, some_written, By::bundle);
      };
      expect({0, 0, 1}, 0, false);
      expect({0, 0, 1}, 0, true);
      expect({0, 0, 1}, shape.tokens / 3 + 1, true);
      expect({0, 0, 0, 1}, 0, true);
      expect({0, 1}, 0, true);
    }
  }
}

/// Coefficients that bf16 does not hold: against sums in double.
TEST(PairAccumulate, BundlesKeepCoefficientsBeyondBf16) {
  if (!has_wgmma()) GTEST_SKIP() << "no warp-group products on this device or in this build";
  const RoutedShape shape = kShapes[1];
  const int64_t d = 64;
  const Stream stream;
  const RoutedCase c(shape);
  const DeviceCase device(c, stream);
  DevicePairBundles bundles;
  bundles.build(device.tokens(), device.lists(), device.position(), shape.active, shape.rows,
                stream);
  const std::vector<float> x = random_integers(shape.tokens * d, 4, 1);
  const std::vector<float> coefficient = random_floats(c.pairs(), 1.0f, 2);
  DeviceBuffer<__nv_bfloat16> a, b;
  upload_as(a, x, stream);
  upload_as(b, x, stream);
  DeviceBuffer<float> weights, first, second;
  weights.upload(coefficient, stream);
  for (auto* gradient : {&first, &second}) {
    gradient->upload(std::vector<float>(static_cast<std::size_t>(shape.rows * d), 0), stream);
  }
  const std::vector<AccumulateTerm<__nv_bfloat16>> terms = {
      {weights.data(), a.data(), first.data(), 1}, {weights.data(), b.data(), second.data(), 1}};
  AccumulateWorkspace workspace;
  accumulate_bundles(bundles.slices().front(), terms, d, workspace, stream);
  std::vector<double> sum(static_cast<std::size_t>(shape.rows * d), 0), size = sum;
  for (int64_t p = 0; p < c.pairs(); ++p) {
    for (int64_t k = 0; k < d; ++k) {
      const double product = static_cast<double>(coefficient[p]) * x[c.token_of(p) * d + k];
      sum[c.row(p) * d + k] += product;
      size[c.row(p) * d + k] += std::abs(product);
    }
  }
  // Two bf16 keep 2^-17 of a coefficient; fp32 sums of at most 200 products add to that.
  for (const auto* gradient : {&first, &second}) {
    const std::vector<float> got = from_device(*gradient, stream);
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], sum[i], size[i] * 3e-5) << i;
    }
  }
}

TEST(PairAccumulate, SumsWideRowsAndManyUnits) {
  for (const RoutedShape& shape : {kShapes[1], kShapes[2], kShapes[3]}) {
    expect_exact_sums<float>(shape, 264, {0, 0, 1}, {3, 1, 3});
    expect_exact_sums<__nv_bfloat16>(shape, 520, {0, 1}, {5, 5});
    expect_exact_sums<__nv_bfloat16>(shape, 8, {0, 1, 0}, {2, 2, 1});
    expect_exact_sums<__nv_bfloat16>(shape, 136, {0, 0, 1}, {16, 1, 16});
    expect_exact_sums<__nv_bfloat16>(shape, 72, {0, 1}, {9, 70});
    expect_exact_sums<float>(shape, 72, {0, 1}, {9, 16});
  }
}

TEST(PairAccumulate, NoTokensNoWork) {
  expect_exact_sums<float>({.tokens = 0, .codewords = 2, .length = 4, .active = 2, .rows = 8}, 64,
                           {0}, {1});
}

}  // namespace
}  // namespace airmoe::cuda::testing
