#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "experts/expert_case.hpp"

namespace airmoe::experts::testing {
namespace {

/// Against an ordered map of (expert) -> (token, pair) lists.
void expect_grouped(const PairGrouping& grouping, SelectionView selection) {
  std::map<int32_t, std::vector<std::pair<int32_t, int64_t>>> expected;
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      expected[selection.position[p]].emplace_back(static_cast<int32_t>(t), p);
    }
  }
  ASSERT_EQ(grouping.groups(), static_cast<int64_t>(expected.size()));
  int64_t group = 0, pairs = 0, largest = 0;
  for (const auto& [expert, list] : expected) {
    ASSERT_EQ(grouping.expert(group), expert);
    ASSERT_EQ(grouping.begin(group), pairs);
    ASSERT_EQ(grouping.end(group), pairs + static_cast<int64_t>(list.size()));
    for (const auto& [token, pair] : list) {
      EXPECT_EQ(grouping.token(pairs), token);
      EXPECT_EQ(grouping.pair(pairs), pair);
      ++pairs;
    }
    largest = std::max(largest, static_cast<int64_t>(list.size()));
    ++group;
  }
  EXPECT_EQ(grouping.pairs(), pairs);
  EXPECT_EQ(grouping.largest_group(), largest);
}

TEST(PairGrouping, MatchesAnOrderedMapAndIsReusable) {
  PairGrouping grouping;  // one object over growing and shrinking problems
  uint32_t seed = 1;
  for (int64_t experts : {20, 500, 20, 3000, 1}) {
    for (int64_t tokens : {0, 1, 65}) {
      for (Pairs pairs : {Pairs::mixed, Pairs::all, Pairs::sparse}) {
        const Case c({.tokens = tokens,
                      .dim = 1,
                      .candidates = std::min<int64_t>(experts, 40),
                      .local_experts = experts,
                      .pairs = pairs},
                     seed++);
        grouping.build(c.grouped_selection(), experts);
        expect_grouped(grouping, c.grouped_selection());
      }
    }
  }
}

TEST(PairGrouping, NothingBuiltIsEmpty) {
  const PairGrouping grouping;
  EXPECT_EQ(grouping.groups(), 0);
  EXPECT_EQ(grouping.pairs(), 0);
}

}  // namespace
}  // namespace airmoe::experts::testing
