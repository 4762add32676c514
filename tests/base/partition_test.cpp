#include "comm/base/partition.hpp"

#include <gtest/gtest.h>

namespace airmoe {
namespace {

// Against the definition: parts follow each other, cover everything, differ by at most one.
TEST(Partition, EverySmallCase) {
  for (int64_t total = 0; total <= 40; ++total) {
    for (int64_t parts = 1; parts <= 12; ++parts) {
      const BlockPartition p{total, parts};
      int64_t next = 0;
      int64_t items = 0;
      for (int64_t part = 0; part < parts; ++part) {
        ASSERT_EQ(p.begin(part), next);
        ASSERT_GE(p.size(part), total / parts);
        ASSERT_LE(p.size(part), (total + parts - 1) / parts);
        for (int64_t item = p.begin(part); item < p.end(part); ++item, ++items) {
          ASSERT_EQ(p.owner(item), part) << item << " of " << total << " over " << parts;
        }
        next = p.end(part);
      }
      ASSERT_EQ(next, total);
      ASSERT_EQ(items, total);
    }
  }
}

TEST(Partition, LargeTotalsDoNotOverflow) {
  const int64_t total = (int64_t{1} << 61) + 5;
  const BlockPartition p{total, 7};
  EXPECT_EQ(p.end(6), total);
  for (int64_t part = 0; part < 7; ++part) {
    EXPECT_EQ(p.owner(p.begin(part)), part);
    EXPECT_EQ(p.owner(p.end(part) - 1), part);
  }
}

}  // namespace
}  // namespace airmoe
