#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "router/data.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router {
namespace {

// Deals entries with random ids out to ranks, merges, and compares with sorting all of them.
void check(test::Random& random, int64_t ranks, int64_t entries, int64_t keep, int64_t values) {
  std::vector<double> score(entries);  // by id
  for (double& s : score) s = static_cast<double>(random.integer(0, values));
  const std::vector<int32_t> order = test::ranking(score);
  std::vector<std::vector<float>> scores(ranks);
  std::vector<std::vector<int32_t>> experts(ranks);
  std::vector<int64_t> owner(entries);
  for (const int32_t id : order) {  // in order, so every slice is sorted
    const int64_t r = random.integer(0, ranks - 1);
    owner[id] = r;
    scores[r].push_back(static_cast<float>(score[id]));
    experts[r].push_back(id);
  }
  std::vector<TopSlice> slices;
  for (int64_t r = 0; r < ranks; ++r) slices.push_back({scores[r], experts[r]});
  const int64_t size = std::min(keep, entries);
  std::vector<int32_t> expert(size, -1), taken(ranks, -1), expected_taken(ranks, 0);
  merge_top(slices, expert, taken);
  ASSERT_EQ(expert, std::vector<int32_t>(order.begin(), order.begin() + size));
  for (const int32_t id : expert) ++expected_taken[owner[id]];
  ASSERT_EQ(taken, expected_taken);
}

TEST(MergeTop, OneToFiveRanks) {
  test::Random random(1);
  for (int64_t ranks = 1; ranks <= 5; ++ranks) {
    for (const int64_t entries : {0, 1, 4, 200}) {
      for (const int64_t keep : {1, 3, 100, 1000}) {
        for (const int64_t values : {0, 3, 100000}) check(random, ranks, entries, keep, values);
      }
    }
  }
}

TEST(MergeTop, EmptySlicesAndNoSlices) {
  std::vector<int32_t> none, taken(3, -1), expert(2);
  merge_top({}, none, none);
  const std::vector<float> score = {2.0f, 1.0f};
  const std::vector<int32_t> id = {9, 4};
  const std::vector<TopSlice> slices = {{{}, {}}, {score, id}, {{}, {}}};
  merge_top(slices, expert, taken);
  EXPECT_EQ(expert, id);
  EXPECT_EQ(taken, (std::vector<int32_t>{0, 2, 0}));
}

TEST(MergeTop, TooFewEntriesIsAnError) {
  const std::vector<float> score = {2.0f};
  const std::vector<int32_t> id = {9};
  const std::vector<TopSlice> slices = {{score, id}};
  std::vector<int32_t> expert(2), taken(1);
  EXPECT_THROW(merge_top(slices, expert, taken), Error);
}

}  // namespace
}  // namespace airmoe::router
