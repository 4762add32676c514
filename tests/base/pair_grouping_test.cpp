#include "comm/base/pair_grouping.hpp"

#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/random.hpp"

namespace airmoe {
namespace {

/// Against an ordered map of position -> (token, pair) lists.
void expect_grouped(const PairGrouping& grouping, SelectionView selection) {
  std::map<int32_t, std::vector<std::pair<int32_t, int64_t>>> expected;
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      expected[selection.position[p]].emplace_back(static_cast<int32_t>(t), p);
    }
  }
  ASSERT_EQ(grouping.groups(), static_cast<int64_t>(expected.size()));
  int64_t group = 0, pairs = 0, largest = 0;
  for (const auto& [position, list] : expected) {
    ASSERT_EQ(grouping.position(group), position);
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
  EXPECT_EQ(grouping.first_pair(), selection.tokens > 0 ? selection.offset[0] : 0);
}

// Few groups of many positions, and most of few: both ways of putting groups in order.
TEST(PairGrouping, MatchesAnOrderedMapAndIsReusable) {
  PairGrouping grouping;  // one object over growing and shrinking problems
  uint32_t seed = 1;
  for (const int64_t positions : {20, 500, 20, 3000, 1}) {
    for (const int64_t tokens : {0, 1, 65}) {
      for (const double share : {0.0, 0.002, 0.3, 1.0}) {
        const RandomStream stream(1, Purpose::test_data, seed++);
        std::vector<int32_t> position(3, -1);  // pairs of earlier blocks
        std::vector<int64_t> offset = {3};
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < positions; ++i) {
            if (stream.uniform(static_cast<uint64_t>(t * positions + i)) < share) {
              position.push_back(static_cast<int32_t>(i));
            }
          }
          offset.push_back(std::ssize(position));
        }
        const SelectionView selection{tokens, offset.data(), position.data(), nullptr};
        grouping.build(selection, positions);
        expect_grouped(grouping, selection);
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
}  // namespace airmoe
