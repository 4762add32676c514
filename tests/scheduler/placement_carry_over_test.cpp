// Candidate ranks after a list was rebuilt, by hand and against the rule written out with std::map.

#include <map>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "scheduler/placement/carry_over.hpp"

namespace airmoe::scheduler {
namespace {

TEST(CarryOver, KeepsStayersAndSendsNewEntriesToTheirOwnerInTheCoverOrThePrimary) {
  const std::vector<int32_t> home = {0, 0, 1, 1, 2, 2, 3, 3};
  const std::vector<int32_t> before = {5, 1, 2, 6};
  const std::vector<uint16_t> rank = {1, 1, 3, 0};
  // 6 was the only one on rank 0, which leaves the cover. 7's owner 3 is in the cover, 0's and 4's
  // are not, 3's owner is the primary.
  const std::vector<int32_t> after = {2, 7, 0, 5, 4, 3};
  std::vector<uint16_t> got(after.size());
  CarryOver carry(8);
  EXPECT_EQ(carry(before, rank, after, home, 1, 4, got), 4);
  EXPECT_EQ(got, (std::vector<uint16_t>{3, 3, 1, 1, 1, 1}));
}

TEST(CarryOver, ForgetsOneListBeforeTheNext) {
  const std::vector<int32_t> home = {0, 1, 2};
  std::vector<uint16_t> got(1);
  CarryOver carry(3);
  carry(std::vector<int32_t>{0}, std::vector<uint16_t>{2}, std::vector<int32_t>{0}, home, 1, 3,
        got);
  EXPECT_EQ(carry(std::vector<int32_t>{1}, std::vector<uint16_t>{1}, std::vector<int32_t>{0}, home,
                  1, 3, got),
            1);
  EXPECT_EQ(got[0], 1);
}

TEST(CarryOver, RandomListsFollowTheRule) {
  std::mt19937 random(3);
  constexpr int kExperts = 60, kRanks = 7;
  CarryOver carry(kExperts);
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::vector<int32_t> ids(kExperts), home(kExperts);
    for (int e = 0; e < kExperts; ++e) {
      ids[e] = e;
      home[e] = static_cast<int32_t>(random() % kRanks);
    }
    const auto length = random() % 20 + 1;
    std::shuffle(ids.begin(), ids.end(), random);
    const std::vector<int32_t> before(ids.begin(), ids.begin() + length);
    std::map<int32_t, uint16_t> rank_of;
    std::vector<uint16_t> rank;
    for (const int32_t e : before) {
      rank.push_back(static_cast<uint16_t>(random() % kRanks));
      rank_of[e] = rank.back();
    }
    std::shuffle(ids.begin(), ids.begin() + std::min<long>(2 * length, kExperts), random);
    const std::vector<int32_t> after(ids.begin(), ids.begin() + length);
    const int primary = static_cast<int>(random() % kRanks);

    std::set<int> cover = {primary};
    int64_t fresh = 0;
    for (const int32_t e : after) {
      if (rank_of.count(e))
        cover.insert(rank_of[e]);
      else
        ++fresh;
    }
    std::vector<uint16_t> want, got(length);
    for (const int32_t e : after) {
      want.push_back(rank_of.count(e)       ? rank_of[e]
                     : cover.count(home[e]) ? static_cast<uint16_t>(home[e])
                                            : static_cast<uint16_t>(primary));
    }
    EXPECT_EQ(carry(before, rank, after, home, primary, kRanks, got), fresh);
    EXPECT_EQ(got, want);
  }
}

}  // namespace
}  // namespace airmoe::scheduler
