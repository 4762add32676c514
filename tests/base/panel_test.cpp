#include "comm/base/panel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "comm/base/error.hpp"

namespace airmoe {
namespace {

constexpr int64_t kGuard = 24;  // floats around every output that must stay as they are
constexpr float kSentinel = -12345.0f;

struct Shape {
  int64_t count, cols, n;
};

void PrintTo(const Shape& s, std::ostream* out) {
  *out << "count " << s.count << " cols " << s.cols << " n " << s.n;
}

// A table with more rows than the panel, rows in random order, leading dimensions wider than cols.
struct Problem {
  Shape shape;
  int64_t ld;
  Buffer<float> table, x, y, tile;
  std::vector<int32_t> rows;
  PanelWorkspace workspace;

  Problem(Shape s, bool integers) : shape(s), ld(s.cols + 3) {
    std::mt19937 random(static_cast<uint32_t>(s.count * 31 + s.cols * 7 + s.n));
    const auto value = [&] {
      return integers ? static_cast<float>(static_cast<int>(random() % 9) - 4)
                      : static_cast<float>(random() % 20001) / 10000.0f - 1.0f;
    };
    const int64_t table_rows = s.count * 2 + 1;
    // No element past the end of the last row: a read beyond `cols` there is a fault that the
    // address sanitizer sees.
    table.ensure((table_rows - 1) * ld + s.cols);
    x.ensure(std::max<int64_t>(s.n - 1, 0) * ld + s.cols);
    y.ensure(x.size());
    tile.ensure(s.count * tile_ld(s.n) + kGuard);
    for (float& v : table) v = value();
    for (float& v : x) v = value();
    for (float& v : y) v = value();
    tile.fill(kSentinel);
    rows.resize(static_cast<size_t>(table_rows));
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random);
    rows.resize(static_cast<size_t>(s.count));
  }

  // Random factors in the tile, zero in the padding.
  void fill_tile(bool integers) {
    std::mt19937 random(7);
    const int64_t tile_cols = tile_ld(shape.n);
    for (int64_t i = 0; i < shape.count * tile_cols; ++i) {
      const int draw = static_cast<int>(random() % 20001);
      const float value =
          integers ? static_cast<float>(draw % 7 - 3) : static_cast<float>(draw) / 10000.0f - 1.0f;
      tile[i] = i % tile_cols < shape.n ? value : 0.0f;
    }
  }

  ConstPanel panel() const { return {table.data(), rows.data(), shape.count, shape.cols, ld}; }
  Panel panel() { return {table.data(), rows.data(), shape.count, shape.cols, ld}; }
  ConstMatrix tokens() const { return {x.data(), shape.n, shape.cols, ld}; }
  Matrix output() { return {y.data(), shape.n, shape.cols, ld}; }
};

std::vector<float> copy(const Buffer<float>& b) {
  return {b.begin(), b.end()};
}

bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

// Block edges of every kernel: 1, 4, 6, 8, 12 rows; vectors of 4, 8, 16; chunks of 64 rows.
const Shape kShapes[] = {{1, 1, 1},      {3, 5, 2},    {12, 16, 16},  {13, 17, 17},  {25, 33, 31},
                         {64, 64, 32},   {65, 63, 33}, {130, 48, 64}, {200, 100, 7}, {11, 257, 48},
                         {128, 31, 128}, {6, 8, 129},  {70, 130, 1}};

std::vector<int64_t> supported_targets() {  // and compiled
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  return targets;
}

void use_targets(int64_t targets) {  // 0: all that this processor has
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

bool has_fused_multiply_add(int64_t target) {
  return (target & (HWY_AVX3 | HWY_AVX2 | HWY_NEON)) != 0;
}

// Every case with every instruction set of this processor.
class PanelTest : public ::testing::TestWithParam<std::tuple<int64_t, Shape>> {
 protected:
  PanelTest() { use_targets(target()); }
  ~PanelTest() override { use_targets(0); }
  static int64_t target() { return std::get<0>(GetParam()); }
  static const Shape& shape() { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Shapes, PanelTest,
                         ::testing::Combine(::testing::ValuesIn(supported_targets()),
                                            ::testing::ValuesIn(kShapes)),
                         [](const auto& test) {
                           const Shape& shape = std::get<1>(test.param);
                           return std::string(hwy::TargetName(std::get<0>(test.param))) + "_count" +
                                  std::to_string(shape.count) + "_cols" +
                                  std::to_string(shape.cols) + "_n" + std::to_string(shape.n);
                         });

TEST_P(PanelTest, ScoresOfIntegersAreExact) {
  Problem p(shape(), true);
  std::vector<float> expected(static_cast<size_t>(p.shape.count * tile_ld(p.shape.n)));
  reference::panel_scores(p.panel(), p.tokens(), expected.data());
  panel_scores(p.panel(), p.tokens(), p.tile.data(), p.workspace);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(p.tile[static_cast<int64_t>(i)], expected[i]) << "element " << i;
  }
  for (int64_t i = p.tile.size() - kGuard; i < p.tile.size(); ++i) ASSERT_EQ(p.tile[i], kSentinel);
}

TEST_P(PanelTest, CombineOfIntegersIsExact) {
  Problem p(shape(), true);
  p.fill_tile(true);
  Buffer<float> expected(p.y.size());
  std::copy(p.y.begin(), p.y.end(), expected.begin());
  reference::panel_combine(p.panel(), p.tile.data(),
                           Matrix(expected.data(), p.shape.n, p.shape.cols, p.ld));
  panel_combine(p.panel(), p.tile.data(), p.output(), p.workspace);
  // The whole array: the elements between rows must not have changed.
  ASSERT_EQ(copy(p.y), copy(expected));
}

TEST_P(PanelTest, AccumulateOfIntegersIsExact) {
  Problem p(shape(), true);
  p.fill_tile(true);
  Buffer<float> expected(p.table.size());
  std::copy(p.table.begin(), p.table.end(), expected.begin());
  reference::panel_accumulate(
      Panel{expected.data(), p.rows.data(), p.shape.count, p.shape.cols, p.ld}, p.tile.data(),
      p.tokens());
  panel_accumulate(p.panel(), p.tile.data(), p.tokens(), p.workspace);
  ASSERT_EQ(copy(p.table), copy(expected));
}

// The definition in the header, written out: one chain of multiply-adds in index order, fused where
// the instruction set can.
TEST_P(PanelTest, EveryElementIsOneChain) {
  const auto multiply_add = [fused = has_fused_multiply_add(target())](float a, float b, float c) {
    if (fused) return std::fma(a, b, c);
    const volatile float product = a * b;  // or the compiler may fuse it
    return product + c;
  };
  Problem p(shape(), false);
  const auto [count, cols, n] = p.shape;
  const int64_t ld = tile_ld(n);
  panel_scores(p.panel(), p.tokens(), p.tile.data(), p.workspace);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < n; ++t) {
      float chain = 0;
      for (int64_t k = 0; k < cols; ++k) {
        chain = multiply_add(p.table[p.rows[static_cast<size_t>(i)] * p.ld + k], p.x[t * p.ld + k],
                             chain);
      }
      ASSERT_EQ(p.tile[i * ld + t], chain) << "scores of row " << i << ", token " << t;
    }
  }
  p.fill_tile(false);
  const std::vector<float> y = copy(p.y);
  panel_combine(p.panel(), p.tile.data(), p.output(), p.workspace);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t k = 0; k < cols; ++k) {
      float chain = 0;
      for (int64_t i = 0; i < count; ++i) {
        chain = multiply_add(p.tile[i * ld + t], p.table[p.rows[static_cast<size_t>(i)] * p.ld + k],
                             chain);
      }
      ASSERT_EQ(p.y[t * p.ld + k], y[static_cast<size_t>(t * p.ld + k)] + chain)
          << "combine of token " << t << ", column " << k;
    }
  }
  const std::vector<float> table = copy(p.table);
  panel_accumulate(p.panel(), p.tile.data(), p.tokens(), p.workspace);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = p.rows[static_cast<size_t>(i)] * p.ld;
    for (int64_t k = 0; k < cols; ++k) {
      float chain = 0;
      for (int64_t t = 0; t < n; ++t) {
        chain = multiply_add(p.tile[i * ld + t], p.x[t * p.ld + k], chain);
      }
      ASSERT_EQ(p.table[row + k], table[static_cast<size_t>(row + k)] + chain)
          << "accumulate of row " << i << ", column " << k;
    }
  }
}

TEST_P(PanelTest, TokensAndRowsOneByOneGiveTheSameBits) {
  Problem p(shape(), false);
  const auto [count, cols, n] = p.shape;
  const int64_t ld = tile_ld(n);
  panel_scores(p.panel(), p.tokens(), p.tile.data(), p.workspace);
  Buffer<float> single(kTileLanes);
  for (int64_t i = 0; i < count; ++i) {
    const ConstPanel row{p.table.data(), p.rows.data() + i, 1, cols, p.ld};
    for (int64_t t = 0; t < n; ++t) {
      panel_scores(row, p.tokens().slice_rows(t, 1), single.data(), p.workspace);
      ASSERT_TRUE(same_bits(&single[0], &p.tile[i * ld + t], 1)) << "row " << i << ", token " << t;
    }
  }

  p.fill_tile(false);
  Buffer<float> y(p.y.size());
  std::copy(p.y.begin(), p.y.end(), y.begin());
  panel_combine(p.panel(), p.tile.data(), p.output(), p.workspace);
  Buffer<float> column(count * kTileLanes, 0.0f);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t i = 0; i < count; ++i) column[i * kTileLanes] = p.tile[i * ld + t];
    panel_combine(p.panel(), column.data(), Matrix(y.data() + t * p.ld, 1, cols, p.ld),
                  p.workspace);
    ASSERT_TRUE(same_bits(&y[t * p.ld], &p.y[t * p.ld], cols)) << "token " << t;
  }

  Buffer<float> table(p.table.size());
  std::copy(p.table.begin(), p.table.end(), table.begin());
  panel_accumulate(p.panel(), p.tile.data(), p.tokens(), p.workspace);
  for (int64_t i = 0; i < count; ++i) {
    panel_accumulate(Panel{table.data(), p.rows.data() + i, 1, cols, p.ld}, &p.tile[i * ld],
                     p.tokens(), p.workspace);
  }
  ASSERT_TRUE(same_bits(table.data(), p.table.data(), table.size()));
}

TEST(Panel, EveryFusedVectorWidthGivesTheSameBits) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    std::vector<float> tile, y, table;
    for (const int64_t target : supported_targets()) {
      if (!has_fused_multiply_add(target)) continue;
      use_targets(target);
      Problem p(shape, false);
      panel_scores(p.panel(), p.tokens(), p.tile.data(), p.workspace);
      const std::vector<float> scores = copy(p.tile);
      p.fill_tile(false);
      panel_combine(p.panel(), p.tile.data(), p.output(), p.workspace);
      panel_accumulate(p.panel(), p.tile.data(), p.tokens(), p.workspace);
      use_targets(0);
      if (tile.empty()) {
        tile = scores, y = copy(p.y), table = copy(p.table);
        continue;
      }
      EXPECT_EQ(scores, tile) << hwy::TargetName(target);
      EXPECT_EQ(copy(p.y), y) << hwy::TargetName(target);
      EXPECT_EQ(copy(p.table), table) << hwy::TargetName(target);
    }
  }
}

TEST(Panel, PaddingIsZeroEvenNextToInfinity) {
  Problem p({5, 20, 3}, false);
  p.table.fill(std::numeric_limits<float>::infinity());
  panel_scores(p.panel(), p.tokens(), p.tile.data(), p.workspace);
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t t = 3; t < kTileLanes; ++t) EXPECT_EQ(p.tile[i * kTileLanes + t], 0.0f);
  }
}

TEST(Panel, NothingToDo) {
  Problem no_tokens({4, 6, 0}, true);
  panel_scores(no_tokens.panel(), no_tokens.tokens(), no_tokens.tile.data(), no_tokens.workspace);
  panel_combine(no_tokens.panel(), no_tokens.tile.data(), no_tokens.output(), no_tokens.workspace);
  const std::vector<float> table = copy(no_tokens.table);
  panel_accumulate(no_tokens.panel(), no_tokens.tile.data(), no_tokens.tokens(),
                   no_tokens.workspace);
  EXPECT_EQ(copy(no_tokens.table), table);

  Problem no_rows({0, 6, 4}, true);
  const std::vector<float> y = copy(no_rows.y);
  panel_scores(no_rows.panel(), no_rows.tokens(), no_rows.tile.data(), no_rows.workspace);
  panel_combine(no_rows.panel(), no_rows.tile.data(), no_rows.output(), no_rows.workspace);
  EXPECT_EQ(copy(no_rows.y), y);
}

TEST(Panel, ShapesThatDisagreeAreNamed) {
  Problem p({4, 6, 2}, true);
  try {
    panel_scores(p.panel(), ConstMatrix(p.x.data(), 2, 5), p.tile.data(), p.workspace);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("tokens [2, 5] against a panel [4, 6]"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(panel_combine(p.panel(), p.tile.data(), Matrix(p.y.data(), 2, 5), p.workspace),
               Error);
  EXPECT_THROW(
      panel_accumulate(p.panel(), p.tile.data(), ConstMatrix(p.x.data(), 2, 5), p.workspace),
      Error);
}

}  // namespace
}  // namespace airmoe
