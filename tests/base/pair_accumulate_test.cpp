// Rows that collect the tokens that selected them, in double precision and exactly.

#include "comm/base/pair_accumulate.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"

namespace airmoe {
namespace {

constexpr int64_t kFirst = 3;  // pairs of earlier blocks come before

struct Problem {
  int64_t tokens, candidates, units, dim, rows;
  std::vector<float> x, coefficient;
  std::vector<int32_t> list, position;
  std::vector<int64_t> offset;

  Problem(int64_t tokens_, int64_t candidates_, int64_t units_, int64_t dim_)
      : tokens(tokens_), candidates(candidates_), units(units_), dim(dim_), rows(2 * candidates_) {
    const RandomStream stream(7, Purpose::test_data);
    x.resize(tokens * ld());
    stream.fill_normal(x.data(), std::ssize(x), 0, 1.0f);
    for (int64_t c = 0; c < candidates; ++c) {
      list.push_back(static_cast<int32_t>(2 * (candidates - 1 - c) + c % 2));
    }
    offset.push_back(kFirst);
    position.assign(kFirst, -1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < candidates; ++c) {
        if (stream.uniform(static_cast<uint64_t>((1 << 20) + t * candidates + c)) < 0.3) {
          position.push_back(static_cast<int32_t>(c));
        }
      }
      offset.push_back(std::ssize(position));
    }
    coefficient.resize((std::ssize(position) - kFirst) * units);
    stream.fill_normal(coefficient.data(), std::ssize(coefficient), 1 << 24, 1.0f);
  }
  int64_t ld() const { return dim + 3; }
  ConstMatrix tokens_matrix() const { return {x.data(), tokens, dim, ld()}; }
  SelectionView selection(int64_t begin, int64_t count) const {
    return {count, offset.data() + begin, position.data(), nullptr};
  }
  std::vector<double> zeros() const { return std::vector<double>(rows * units * (dim + 1), 0.0); }
  MatrixView<double> view(std::vector<double>& gradient) const {
    return {gradient.data(), rows * units, dim, dim + 1};
  }
  /// Adds tokens [begin, begin + count) as one call.
  void add(int64_t begin, int64_t count, const int32_t* candidates_list, double quantum,
           std::vector<double>& gradient, bool plain = false) const {
    PairGrouping grouping;
    grouping.build(selection(begin, count), candidates);
    const float* c = coefficient.data() + (offset[begin] - kFirst) * units;
    const ConstMatrix rows_of_x = tokens_matrix().slice_rows(begin, count);
    if (plain) {
      reference::pair_accumulate(grouping, candidates_list, c, units, rows_of_x, quantum,
                                 view(gradient));
      return;
    }
    PairAccumulateWorkspace workspace;
    pair_accumulate(grouping, candidates_list, c, units, rows_of_x, quantum, view(gradient),
                    workspace);
  }
  /// What the definition says, in extended precision and without rounding to a quantum.
  std::vector<long double> plain_sums(const int32_t* candidates_list) const {
    std::vector<long double> sums(rows * units * (dim + 1), 0.0L);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t p = offset[t]; p < offset[t + 1]; ++p) {
        const int64_t row = candidates_list != nullptr ? candidates_list[position[p]] : position[p];
        for (int64_t j = 0; j < units; ++j) {
          for (int64_t k = 0; k < dim; ++k) {
            sums[(row * units + j) * (dim + 1) + k] +=
                static_cast<long double>(coefficient[(p - kFirst) * units + j]) *
                static_cast<long double>(x[t * ld() + k]);
          }
        }
      }
    }
    return sums;
  }
};

TEST(PairAccumulate, IsTheSumWithinAQuantumPerPair) {
  const double quantum = 0x1p-30;
  for (const int64_t units : {1, 3, 4, 9}) {
    const Problem problem(20, 30, units, 11);
    for (const int32_t* list : {static_cast<const int32_t*>(nullptr), problem.list.data()}) {
      std::vector<double> gradient = problem.zeros();
      problem.add(0, problem.tokens, list, quantum, gradient);
      const std::vector<long double> expected = problem.plain_sums(list);
      double largest = 0.0;
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        largest = std::max(largest, std::abs(gradient[i]));
        EXPECT_EQ(std::fmod(gradient[i], quantum), 0.0);
        ASSERT_NEAR(gradient[i], static_cast<double>(expected[i]), 20 * quantum);
      }
      EXPECT_GT(largest, 1.0);
    }
  }
}

TEST(PairAccumulate, EveryInstructionSetWithFusedMultiplyAddGivesTheBitsOfTheReference) {
  for (int64_t targets = hwy::SupportedTargets() & HWY_TARGETS; targets != 0;
       targets &= targets - 1) {
    const int64_t target = targets & -targets;
    if (HWY_ARCH_X86 && target > HWY_AVX2) continue;  // larger is older
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (const int64_t dim : {1, 7, 8, 63, 64, 75, 200}) {
      for (const int64_t units : {1, 3, 4, 9}) {
        const Problem problem(9, 40, units, dim);
        ASSERT_GT(problem.position.size(), 50u);
        for (const int32_t* list : {static_cast<const int32_t*>(nullptr), problem.list.data()}) {
          std::vector<double> fast = problem.zeros(), plain = fast;
          problem.add(0, problem.tokens, list, 0x1p-30, fast);
          problem.add(0, problem.tokens, list, 0x1p-30, plain, true);
          EXPECT_EQ(fast, plain) << hwy::TargetName(target) << ", " << dim << " columns, " << units
                                 << " units";
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// What the whole project leans on: neither blocks nor their order nor the rank that did them show.
TEST(PairAccumulate, BlocksAndTheirOrderDoNotShow) {
  const Problem problem(100, 30, 2, 21);
  const double quantum = 0x1p-40;
  std::vector<double> whole = problem.zeros();
  problem.add(0, 100, problem.list.data(), quantum, whole);
  for (const int64_t block : {1, 7, 64}) {
    std::vector<double> ahead = problem.zeros(), elsewhere = ahead;
    for (int64_t begin = 0; begin < 100; begin += block) {  // every other block on another rank
      problem.add(begin, std::min(block, 100 - begin), problem.list.data(), quantum,
                  begin / block % 2 == 0 ? ahead : elsewhere);
    }
    for (std::size_t i = 0; i < ahead.size(); ++i) ahead[i] += elsewhere[i];
    EXPECT_EQ(ahead, whole);
    std::vector<double> back = problem.zeros();
    for (int64_t begin = (99 / block) * block; begin >= 0; begin -= block) {
      problem.add(begin, std::min(block, 100 - begin), problem.list.data(), quantum, back);
    }
    EXPECT_EQ(back, whole);
  }
}

// Products half way between two multiples: without care their rounding would look at the sum so
// far.
TEST(PairAccumulate, TiesDoNotSeeTheOrder) {
  const double quantum = 0x1p-30;
  const std::vector<float> ties = {0x1p-31f, 3 * 0x1p-31f, 5 * 0x1p-31f};  // 0.5, 1.5, 2.5 quanta
  const std::vector<float> x(3 * 9, 1.0f);
  const std::vector<int32_t> token = {0, 1, 2};
  std::vector<double> whole(9, 0.0), parts(9, 0.0);
  PairAccumulateWorkspace workspace;
  row_accumulate(token.data(), 3, ties.data(), 1, {x.data(), 3, 9}, quantum, {whole.data(), 1, 9},
                 workspace);
  for (int64_t i = 0; i < 3; ++i) {
    row_accumulate(token.data() + i, 1, ties.data() + i, 1, {x.data(), 3, 9}, quantum,
                   {parts.data(), 1, 9}, workspace);
  }
  EXPECT_EQ(parts, whole);
  EXPECT_GT(whole[0], 0.0);
}

TEST(RowAccumulate, EqualsPairAccumulate) {
  const int64_t stride = 16;
  const Problem problem(40, 1, 5, 35);
  std::vector<double> expected = problem.zeros(), actual = expected;
  problem.add(0, 40, nullptr, 0x1p-40, expected);
  PairGrouping grouping;
  grouping.build(problem.selection(0, 40), 1);
  std::vector<float> coefficient(grouping.pairs() * stride, 99.0f);
  for (int64_t i = 0; i < grouping.pairs(); ++i) {
    for (int64_t j = 0; j < 5; ++j) {
      coefficient[i * stride + j] = problem.coefficient[(grouping.pair(i) - kFirst) * 5 + j];
    }
  }
  PairAccumulateWorkspace workspace;
  row_accumulate(grouping.tokens(), grouping.pairs(), coefficient.data(), stride,
                 problem.tokens_matrix(), 0x1p-40, problem.view(actual).slice_rows(0, 5),
                 workspace);
  EXPECT_EQ(actual, expected);
  EXPECT_NE(actual, problem.zeros());
}

TEST(PairAccumulate, NoTokensNoWorkAndWidthsMustAgree) {
  PairGrouping grouping;
  PairAccumulateWorkspace workspace;
  grouping.build({}, 5);
  pair_accumulate(grouping, nullptr, nullptr, 1, {nullptr, 0, 5}, 1.0, {nullptr, 0, 5}, workspace);
  EXPECT_THROW(pair_accumulate(grouping, nullptr, nullptr, 1, {nullptr, 0, 5}, 1.0, {nullptr, 0, 4},
                               workspace),
               Error);
}

TEST(ExpertGradientQuantum, HalvesWithEveryFourfoldOfExperts) {
  EXPECT_EQ(expert_gradient_quantum(1), 0x1p-44);
  EXPECT_EQ(expert_gradient_quantum(2), 0x1p-44);
  EXPECT_EQ(expert_gradient_quantum(3), 0x1p-45);
  EXPECT_EQ(expert_gradient_quantum(4096), 0x1p-50);
  EXPECT_EQ(expert_gradient_quantum(4097), 0x1p-50);
  EXPECT_EQ(expert_gradient_quantum(65536), 0x1p-52);
  EXPECT_EQ(expert_gradient_quantum(int64_t{1} << 40), 0x1p-64);
  EXPECT_EQ(expert_gradient_quantum(std::numeric_limits<int64_t>::max()), 0x1p-75);
}

}  // namespace
}  // namespace airmoe
