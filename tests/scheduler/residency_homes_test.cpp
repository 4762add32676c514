// Experts that change owners: every row arrives, by id; files see blocks whatever the homes.

#include "comm/base/error.hpp"
#include "tests/scheduler/residency_case.hpp"

namespace airmoe::test {
namespace {

class ResidencyHomes : public ::testing::TestWithParam<int64_t> {
 protected:
  ResidencyHomes() : c(GetParam(), SumPrecision::f64) {}
  std::vector<int32_t> blocks() const { return block_homes(GetParam(), c.ranks); }
  void expect_moved(const std::vector<int32_t>& from, const std::vector<int32_t>& to) {
    c.comm.reset();
    const int64_t moved = c.residency.set_homes(to);
    int64_t want = 0;
    for (std::size_t e = 0; e < from.size(); ++e) {
      want += from[e] == c.rank && to[e] != c.rank;
    }
    EXPECT_EQ(moved, want);
    EXPECT_EQ(c.sent("move_experts"), 4 * want * (c.kWidth + c.kMoment));
    EXPECT_EQ(c.residency.in_blocks(), to == blocks());
    c.expect_index(to, {});
    c.expect_owned(0);
  }

  ResidencyCase c;
};

TEST_P(ResidencyHomes, AreBlocksAtFirst) {
  EXPECT_TRUE(c.residency.in_blocks());
  EXPECT_EQ(c.residency.experts(), GetParam());
  c.expect_index(blocks(), {});
}

TEST_P(ResidencyHomes, MoveAllRowsAtRandomAndBack) {
  std::vector<int32_t> home = blocks();
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    const std::vector<int32_t> next = random_homes(GetParam(), c.ranks, seed);
    expect_moved(home, next);
    home = next;
  }
  expect_moved(home, blocks());
  expect_moved(blocks(), blocks());
}

TEST_P(ResidencyHomes, MoveAFewRows) {
  std::vector<int32_t> home = blocks();
  std::mt19937 random(8);
  std::uniform_int_distribution<int64_t> any(0, GetParam() - 1);
  for (int round = 0; round < 6; ++round) {
    std::vector<int32_t> next = home;
    for (int i = 0; i < 3; ++i) std::swap(next[any(random)], next[any(random)]);
    expect_moved(home, next);
    home = next;
  }
}

TEST_P(ResidencyHomes, DecideWhereCopiesComeFrom) {
  const std::vector<int32_t> home = random_homes(GetParam(), c.ranks, 4);
  c.residency.set_homes(home);
  const auto wishes = random_wishes(GetParam(), c.ranks, 1);
  c.write(2);
  c.residency.acquire(wishes[c.rank]);
  c.expect_index(home, copies_of(wishes[c.rank], home, c.rank));
  for (int64_t row = 0; row < c.residency.rows(); ++row) c.expect_values(row, 2);
}

TEST_P(ResidencyHomes, AreBlocksInFiles) {
  for (uint32_t seed = 0; seed < 3; ++seed) {
    const std::vector<int32_t> home =
        seed == 0 ? blocks() : random_homes(GetParam(), c.ranks, seed);
    c.residency.set_homes(home);
    c.write(static_cast<int>(seed));
    const auto wishes = random_wishes(GetParam(), c.ranks, seed);
    c.residency.acquire(wishes[c.rank]);  // copies stay out of it
    const std::vector<int32_t> mine = experts_of(blocks(), c.rank);
    const int64_t rows = std::ssize(mine);
    c.comm.reset();
    Buffer<float> block(rows * c.kUp + 1, -1.0f);
    c.residency.to_blocks(c.up.data(), c.kUp, block.data());
    EXPECT_EQ(block[rows * c.kUp], -1.0f);
    int64_t elsewhere = 0;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < c.kUp; ++j) {
        EXPECT_EQ(block[i * c.kUp + j], element(mine[i], 1, j, static_cast<int>(seed)));
      }
    }
    for (const int32_t e : experts_of(home, c.rank)) elsewhere += blocks()[e] != c.rank;
    EXPECT_EQ(c.sent("to_blocks"), 4 * c.kUp * elsewhere);

    Buffer<float> back(rows * c.kUp + 1, -1.0f);
    c.residency.from_blocks(block.data(), c.kUp, back.data());
    EXPECT_EQ(back[rows * c.kUp], -1.0f);
    for (int64_t i = 0; i < rows * c.kUp; ++i) EXPECT_EQ(back[i], c.up[i]);
    EXPECT_EQ(c.sent("from_blocks"), 4 * c.kUp * elsewhere);
    c.residency.drop_copies();
  }
}

TEST_P(ResidencyHomes, AreForgottenByAReset) {
  c.residency.set_homes(random_homes(GetParam(), c.ranks, 3));
  c.comm.reset();
  c.residency.reset_homes();
  EXPECT_TRUE(c.residency.in_blocks());
  c.write(3);
  c.expect_index(blocks(), {});
  c.expect_owned(3);
  EXPECT_EQ(c.sent("move_experts"), 0);
}

TEST_P(ResidencyHomes, RefuseWhatIsNoPlacement) {
  std::vector<int32_t> home = blocks();
  home.pop_back();
  EXPECT_THROW(c.residency.set_homes(home), Error);
  home = blocks();
  home[0] = -1;
  EXPECT_THROW(c.residency.set_homes(home), Error);
  home[0] = c.ranks;
  EXPECT_THROW(c.residency.set_homes(home), Error);
  home[0] = 1;  // one too many on rank 1, or no rank 1
  EXPECT_THROW(c.residency.set_homes(home), Error);
  c.expect_index(blocks(), {});
  c.expect_owned(0);
  const auto wishes = random_wishes(GetParam(), c.ranks, 1);
  c.residency.acquire(wishes[c.rank]);
  if (c.residency.copies() > 0) {
    EXPECT_THROW(c.residency.set_homes(blocks()), Error);
    EXPECT_THROW(c.residency.reset_homes(), Error);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ResidencyHomes, ::testing::Values(41, 600, 3, 2, 1));

}  // namespace
}  // namespace airmoe::test
