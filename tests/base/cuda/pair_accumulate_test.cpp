// Pairs grouped by row and the sums over a row's pairs, against plain loops on exact data.

#include "comm/base/cuda/pair_accumulate.hpp"

#include <gtest/gtest.h>

#include "base/cuda/routed_case.hpp"
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

TEST(PairGroups, AreTheStableSortByRow) {
  const Stream stream;
  DevicePairGrouping grouping;  // one object over growing and shrinking problems
  for (const RoutedShape& shape : kShapes) {
    SCOPED_TRACE(name(shape));
    const RoutedCase c(shape);
    const DeviceCase device(c, stream);
    grouping.build(device.tokens(), device.lists(), device.position(), shape.active, shape.rows,
                   stream);
    const PairGroups view = grouping.view();
    ASSERT_EQ(view.pairs, c.pairs());
    std::vector<int32_t> pair(static_cast<std::size_t>(c.pairs()));
    std::iota(pair.begin(), pair.end(), 0);
    std::stable_sort(pair.begin(), pair.end(),
                     [&](int32_t a, int32_t b) { return c.row(a) < c.row(b); });
    std::vector<int32_t> row, offset(static_cast<std::size_t>(shape.rows + 1), 0);
    for (const int32_t p : pair) {
      row.push_back(c.row(p));
      ++offset[static_cast<std::size_t>(c.row(p) + 1)];
    }
    std::partial_sum(offset.begin(), offset.end(), offset.begin());
    EXPECT_EQ(from_device(view.pair, c.pairs(), stream), pair);
    EXPECT_EQ(from_device(view.row, c.pairs(), stream), row);
    EXPECT_EQ(from_device(view.offset, shape.rows + 1, stream), offset);
  }
}

/// source[i] and units[i] of term i; sources are numbered.
template <class T>
void expect_exact_sums(const RoutedShape& shape, int64_t d, const std::vector<int>& source,
                       const std::vector<int64_t>& units) {
  SCOPED_TRACE(fmt::format("{}, d {}, {} terms, {} units", name(shape), d, units.size(), units[0]));
  const Stream stream;
  const RoutedCase c(shape);
  const DeviceCase device(c, stream);
  DevicePairGrouping grouping;
  grouping.build(device.tokens(), device.lists(), device.position(), shape.active, shape.rows,
                 stream);
  std::vector<std::vector<float>> x, coefficient, expected;
  std::vector<DeviceBuffer<T>> device_x(2);
  std::vector<DeviceBuffer<float>> device_coefficient(units.size()), gradient(units.size());
  for (uint32_t i = 0; i < 2; ++i) {
    x.push_back(random_integers(shape.tokens * d, 4, 20 + i));
    upload_as(device_x[i], x[i], stream);
  }
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
  accumulate_pairs<T>(grouping.view(), terms, d, workspace, stream);
  for (std::size_t i = 0; i < units.size(); ++i) {
    EXPECT_EQ(from_device(gradient[i], stream), expected[i]) << "term " << i;
  }
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
