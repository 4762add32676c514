// Weighted sums of selected rows in double precision.

#include "comm/base/pair_combine.hpp"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/random.hpp"

namespace airmoe {
namespace {

struct Problem {
  int64_t tokens, candidates, units, dim, table_rows;
  std::vector<float> table, coefficient;
  std::vector<int32_t> list, position;
  std::vector<int64_t> offset;
  std::vector<double> quantum;

  Problem(int64_t tokens_, int64_t candidates_, int64_t units_, int64_t dim_)
      : tokens(tokens_),
        candidates(candidates_),
        units(units_),
        dim(dim_),
        table_rows(2 * candidates_) {
    const RandomStream stream(7, Purpose::test_data);
    table.resize(table_rows * units * dim);
    stream.fill_normal(table.data(), std::ssize(table), 0, 1.0f);
    for (int64_t c = 0; c < candidates; ++c) list.push_back(static_cast<int32_t>(2 * c + c % 2));
    for (int64_t t = 0; t < tokens; ++t)
      quantum.push_back(std::ldexp(1.0, -40 - static_cast<int>(t % 3)));
    offset.push_back(3);  // pairs of earlier blocks come before
    position.assign(3, -1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < candidates; ++c) {
        if (stream.uniform(static_cast<uint64_t>(1000 + t * candidates + c)) < 0.3) {
          position.push_back(static_cast<int32_t>(c));
        }
      }
      offset.push_back(std::ssize(position));
    }
    coefficient.resize((std::ssize(position) - 3) * units);
    stream.fill_normal(coefficient.data(), std::ssize(coefficient), 1 << 20, 1.0f);
  }
  SelectionView selection() const { return {tokens, offset.data(), position.data(), nullptr}; }
  ConstMatrix matrix() const { return {table.data(), table_rows * units, dim}; }
  std::vector<double> expected(const int32_t* candidates_list) const {
    std::vector<double> y(tokens * dim, 0.5);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t p = offset[t]; p < offset[t + 1]; ++p) {
        const int64_t row = candidates_list != nullptr ? candidates_list[position[p]] : position[p];
        for (int64_t j = 0; j < units; ++j) {
          for (int64_t k = 0; k < dim; ++k) {
            const double constant = rounding_constant(quantum[t]);
            const double c =
                static_cast<double>(coefficient[(p - 3) * units + j]) * (1.0 + 0x1p-50);
            y[t * dim + k] +=
                std::fma(c, static_cast<double>(matrix()(row * units + j, k)), constant) - constant;
          }
        }
      }
    }
    return y;
  }
};

TEST(PairCombine, IsTheSumInOrderBitForBit) {
  for (const int64_t dim : {1, 7, 8, 63, 64, 75, 200}) {
    for (const int64_t units : {1, 3}) {
      const Problem problem(9, 40, units, dim);
      ASSERT_GT(problem.position.size(), 50u);
      for (const int32_t* list : {static_cast<const int32_t*>(nullptr), problem.list.data()}) {
        std::vector<double> y(problem.tokens * dim, 0.5);
        pair_combine(problem.matrix(), list, problem.selection(), problem.coefficient.data(), units,
                     problem.quantum.data(), {y.data(), problem.tokens, dim});
        EXPECT_EQ(y, problem.expected(list)) << dim << " columns, " << units << " units";
      }
    }
  }
}

// What the whole project leans on: parts that are rounded to float only after they were added do
// not show where they were cut.
TEST(PairCombine, PartsAddUpToTheSameBits) {
  const int64_t dim = 64;
  const Problem problem(200, 300, 1, dim);
  std::vector<double> whole(problem.tokens * dim, 0.0);
  pair_combine(problem.matrix(), nullptr, problem.selection(), problem.coefficient.data(), 1,
               problem.quantum.data(), {whole.data(), problem.tokens, dim});
  int64_t compared = 0;
  for (const int32_t cut : {10, 150, 299}) {
    std::vector<double> low(problem.tokens * dim, 0.0), high = low;
    for (const bool upper : {false, true}) {
      std::vector<float> part(problem.coefficient);
      for (std::size_t p = 0; p < part.size(); ++p) {
        if ((problem.position[p + 3] >= cut) != upper) part[p] = 0.0f;
      }
      pair_combine(problem.matrix(), nullptr, problem.selection(), part.data(), 1,
                   problem.quantum.data(), {upper ? high.data() : low.data(), problem.tokens, dim});
    }
    for (std::size_t i = 0; i < whole.size(); ++i, ++compared) {
      EXPECT_EQ(low[i] + high[i], whole[i]);
    }
  }
  EXPECT_EQ(compared, 3 * problem.tokens * dim);
}

TEST(PairCombine, IsCloseToThePlainSum) {
  const int64_t dim = 70;
  const Problem problem(20, 300, 1, dim);
  std::vector<double> y(problem.tokens * dim, 0.0);
  pair_combine(problem.matrix(), nullptr, problem.selection(), problem.coefficient.data(), 1,
               problem.quantum.data(), {y.data(), problem.tokens, dim});
  for (int64_t t = 0; t < problem.tokens; ++t) {
    for (int64_t k = 0; k < dim; ++k) {
      long double sum = 0;
      for (int64_t p = problem.offset[t]; p < problem.offset[t + 1]; ++p) {
        sum += static_cast<long double>(problem.coefficient[p - 3]) *
               static_cast<long double>(problem.matrix()(problem.position[p], k));
      }
      // Half a quantum per pair, and 2^-50 of each product.
      EXPECT_NEAR(y[t * dim + k], static_cast<double>(sum), 300 * problem.quantum[t]);
    }
  }
}

// Products half way between two multiples: without care their rounding would look at the sum so
// far.
TEST(PairCombine, TiesDoNotSeeTheOrder) {
  const int64_t dim = 9;
  const std::vector<float> table(2 * dim, 1.0f);
  const double quantum = 0x1p-30;
  const std::vector<float> ties = {0x1p-31f, 3 * 0x1p-31f, 5 * 0x1p-31f};  // 0.5, 1.5, 2.5 quanta
  const std::vector<int32_t> position = {0, 1, 0};
  const std::vector<int64_t> all = {0, 3}, one = {0, 1};
  std::vector<double> whole(dim, 0.0), parts(dim, 0.0);
  pair_combine({table.data(), 2, dim}, nullptr, {1, all.data(), position.data(), nullptr},
               ties.data(), 1, &quantum, {whole.data(), 1, dim});
  for (const float tie : ties) {
    pair_combine({table.data(), 2, dim}, nullptr, {1, one.data(), position.data(), nullptr}, &tie,
                 1, &quantum, {parts.data(), 1, dim});
  }
  EXPECT_EQ(parts, whole);
  EXPECT_GT(whole[0], 0.0);
}

TEST(PairCombine, NoTokensNoWork) {
  pair_combine({nullptr, 0, 5}, nullptr, {}, nullptr, 1, nullptr, {nullptr, 0, 5});
}

}  // namespace
}  // namespace airmoe
