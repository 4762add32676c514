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
            const double product = static_cast<double>(coefficient[(p - 3) * units + j]) *
                                   static_cast<double>(matrix()(row * units + j, k));
            y[t * dim + k] += std::nearbyint(product / quantum[t]) * quantum[t];
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

TEST(PairCombine, NoTokensNoWork) {
  pair_combine({nullptr, 0, 5}, nullptr, {}, nullptr, 1, nullptr, {nullptr, 0, 5});
}

}  // namespace
}  // namespace airmoe
