// Copies: who gets which rows, what comes back to the owners, and the bytes of it.

#include <set>

#include "comm/base/error.hpp"
#include "tests/scheduler/residency_case.hpp"

namespace airmoe::test {
namespace {

struct Shape {
  int64_t experts;
  SumPrecision sums;
  bool moved;  ///< homes are not blocks
};

class ResidencyCopies : public ::testing::TestWithParam<Shape> {
 protected:
  ResidencyCopies() : c(GetParam().experts, GetParam().sums) {
    if (GetParam().moved) c.residency.set_homes(random_homes(GetParam().experts, c.ranks, 5));
    home = c.homes();
    c.comm.reset();
  }
  // Copies of every rank after it asked for its wishes.
  std::vector<std::vector<int32_t>> acquire(uint32_t seed) {
    const auto wishes = random_wishes(GetParam().experts, c.ranks, seed);
    c.residency.acquire(wishes[c.rank]);
    std::vector<std::vector<int32_t>> copies;
    for (int r = 0; r < c.ranks; ++r) copies.push_back(copies_of(wishes[r], home, r));
    return copies;
  }
  void expect_zero_gradients(int64_t row) const {
    for (int64_t i = 0; i < c.kUnit; ++i) EXPECT_EQ(c.d_unit[row * c.kUnit + i], 0.0);
    for (int64_t i = 0; i < c.kUp; ++i) EXPECT_EQ(c.d_up[row * c.kUp + i], 0.0);
  }
  // Of those that the ranks hold, how many are this rank's.
  int64_t lent(const std::vector<std::vector<int32_t>>& copies) const {
    int64_t n = 0;
    for (int r = 0; r < c.ranks; ++r) {
      for (const int32_t e : copies[r]) n += home[e] == c.rank;
    }
    return n;
  }

  ResidencyCase c;
  std::vector<int32_t> home;
};

TEST_P(ResidencyCopies, BringTheOwnersValuesAndZeroGradients) {
  c.write(1);
  const auto copies = acquire(2);
  c.expect_index(home, copies[c.rank]);
  for (int64_t row = 0; row < c.residency.rows(); ++row) {
    c.expect_values(row, 1);
    expect_zero_gradients(row);
  }
  EXPECT_EQ(c.sent("copies"), 4 * std::ssize(copies[c.rank]) + 4 * c.kWidth * lent(copies));
}

TEST_P(ResidencyCopies, AreFetchedOnlyOnce) {
  const auto first = acquire(3);
  for (int64_t row = 0; row < c.residency.rows(); ++row) c.d_up[row * c.kUp] = 7.0;
  std::vector<int32_t> rows_before;
  for (const int32_t e : first[c.rank]) rows_before.push_back(c.residency.row(e));
  c.write(1);  // those that are here already keep what they have
  c.comm.reset();
  const auto second = acquire(4);
  std::vector<std::vector<int32_t>> all, fresh;
  for (int r = 0; r < c.ranks; ++r) {
    std::set<int32_t> both(first[r].begin(), first[r].end());
    fresh.emplace_back();
    for (const int32_t e : second[r]) {
      if (both.insert(e).second) fresh[r].push_back(e);
    }
    all.emplace_back(both.begin(), both.end());
  }
  c.expect_index(home, all[c.rank]);
  for (std::size_t i = 0; i < rows_before.size(); ++i) {
    EXPECT_EQ(c.residency.row(first[c.rank][i]), rows_before[i]);
    c.expect_values(rows_before[i], 0);
    EXPECT_EQ(c.d_up[rows_before[i] * c.kUp], 7.0);
  }
  for (const int32_t e : fresh[c.rank]) {
    c.expect_values(c.residency.row(e), 1);
    expect_zero_gradients(c.residency.row(e));
  }
  EXPECT_EQ(c.sent("copies"), 4 * std::ssize(fresh[c.rank]) + 4 * c.kWidth * lent(fresh));
  c.comm.reset();
  c.residency.acquire(all[c.rank]);
  c.residency.acquire({});
  c.expect_index(home, all[c.rank]);
  EXPECT_EQ(c.sent("copies"), 0);
}

TEST_P(ResidencyCopies, AreForgottenAndFetchedAgain) {
  for (int step = 1; step <= 4; ++step) {
    c.write(step);
    const auto copies = acquire(static_cast<uint32_t>(10 + step));
    c.expect_index(home, copies[c.rank]);
    for (int64_t row = 0; row < c.residency.rows(); ++row) {
      c.expect_values(row, step);
      expect_zero_gradients(row);
    }
    c.residency.drop_copies();
    c.expect_index(home, {});
    c.expect_owned(step);
  }
}

TEST_P(ResidencyCopies, ComeInTwoHalvesWithOtherMessagesBetween) {
  const auto wishes = random_wishes(GetParam().experts, c.ranks, 6);
  c.residency.begin_acquire(wishes[c.rank]);
  const float* before = c.unit.data();
  for (const int32_t e : wishes[c.rank]) EXPECT_GE(c.residency.row(e), 0);
  EXPECT_EQ(c.comm.all_reduce_value(int32_t{1}, comm::Reduction::sum), c.ranks);
  c.write(1);  // too late for the copies, whose values are under way
  c.residency.finish_acquire();
  EXPECT_EQ(c.unit.data(), before);
  c.expect_index(home, copies_of(wishes[c.rank], home, c.rank));
  for (int64_t row = c.residency.owned(); row < c.residency.rows(); ++row) c.expect_values(row, 0);
  c.expect_owned(1);
}

// A gradient of an expert from a rank, exact also in float.
double gradient(int64_t expert, int rank, int64_t column) {
  return static_cast<double>(expert % 50 * 8 + column + 1) * (rank + 1);
}

TEST_P(ResidencyCopies, GiveGradientsToTheirOwnersOnce) {
  std::vector<std::vector<int32_t>> copies = acquire(7);
  // Two micro-batches: every rank works with the experts it has of which id + rank is not 1 modulo
  // 3, and copies come in between.
  const auto works_with = [](int32_t e, int r) { return (e + r) % 3 != 1; };
  std::vector<std::vector<int32_t>> later;
  std::vector<double> want(static_cast<std::size_t>(GetParam().experts * c.kWidth));
  for (int batch = 0; batch < 2; ++batch) {
    for (int r = 0; r < c.ranks; ++r) {
      std::vector<int32_t> there = copies[r];
      for (const int32_t e : experts_of(home, r)) there.push_back(e);
      for (const int32_t e : there) {
        if (!works_with(e, r)) continue;
        for (int64_t i = 0; i < c.kWidth; ++i) want[e * c.kWidth + i] += gradient(e, r, i);
        if (r != c.rank) continue;
        const int32_t row = c.residency.row(e);
        c.residency.touch(row);
        for (int64_t i = 0; i < c.kUnit; ++i) c.d_unit[row * c.kUnit + i] += gradient(e, r, i);
        for (int64_t i = 0; i < c.kUp; ++i) {
          c.d_up[row * c.kUp + i] += gradient(e, r, c.kUnit + i);
        }
      }
    }
    if (batch == 0) {
      later = acquire(8);
      for (int r = 0; r < c.ranks; ++r) {
        std::set<int32_t> both(copies[r].begin(), copies[r].end());
        both.insert(later[r].begin(), later[r].end());
        copies[r].assign(both.begin(), both.end());
      }
    }
  }
  c.comm.reset();
  for (int round = 0; round < 2; ++round) {  // the second finds nothing to return
    c.residency.return_gradients();
    for (int64_t row = 0; row < c.residency.owned(); ++row) {
      const int32_t e = c.residency.expert(row);
      for (int64_t i = 0; i < c.kUnit; ++i) {
        EXPECT_EQ(c.d_unit[row * c.kUnit + i], want[e * c.kWidth + i]) << "expert " << e;
      }
      for (int64_t i = 0; i < c.kUp; ++i) {
        EXPECT_EQ(c.d_up[row * c.kUp + i], want[e * c.kWidth + c.kUnit + i]) << "expert " << e;
      }
    }
    for (int64_t row = c.residency.owned(); row < c.residency.rows(); ++row) {
      expect_zero_gradients(row);
    }
    const auto touched = std::count_if(copies[c.rank].begin(), copies[c.rank].end(),
                                       [&](int32_t e) { return works_with(e, c.rank); });
    const int64_t bytes = GetParam().sums == SumPrecision::f64 ? 8 : 4;
    EXPECT_EQ(c.sent("copy_gradients"), touched * (4 + bytes * c.kWidth));
  }
  c.residency.drop_copies();
  c.expect_index(home, {});
}

TEST_P(ResidencyCopies, CountsAreSummedOverAllHolders) {
  const auto copies = acquire(9);
  const auto count_of = [](int32_t e, int r) { return (e * 5 + r * 3) % 4; };  // often 0
  std::vector<int32_t> total(static_cast<std::size_t>(GetParam().experts));
  Buffer<int32_t> count(c.residency.rows() + 3, 0);  // more than rows is fine
  for (int batch = 0; batch < 2; ++batch) {
    std::fill(total.begin(), total.end(), 0);
    std::vector<int32_t> rows;
    int64_t listed_copies = 0, asked = 0;
    for (int r = 0; r < c.ranks; ++r) {
      std::vector<int32_t> there = copies[r];
      for (const int32_t e : experts_of(home, r)) there.push_back(e);
      for (const int32_t e : there) {
        const int32_t n = count_of(e + batch, r);
        total[e] += n;
        if (n == 0) continue;
        listed_copies += r == c.rank && home[e] != r;
        asked += r != c.rank && home[e] == c.rank;
        if (r != c.rank) continue;
        rows.push_back(c.residency.row(e));
        count[c.residency.row(e)] = n;
      }
    }
    std::shuffle(rows.begin(), rows.end(), std::mt19937(3));
    const std::vector<int32_t> listed = rows;
    c.comm.reset();
    c.residency.share_counts(count, rows);
    EXPECT_EQ(c.sent("usage"), 8 * listed_copies + 4 * asked);
    const std::set<int32_t> distinct(rows.begin(), rows.end());
    EXPECT_EQ(distinct.size(), rows.size());
    for (const int32_t row : listed) {
      EXPECT_TRUE(distinct.contains(row));
    }
    for (int64_t row = 0; row < c.residency.rows(); ++row) {
      const int32_t e = c.residency.expert(row);
      const bool known = distinct.contains(static_cast<int32_t>(row));
      if (row < c.residency.owned()) {
        EXPECT_EQ(known, total[e] != 0) << "expert " << e;
      } else {
        EXPECT_EQ(known, count_of(e + batch, c.rank) != 0) << "expert " << e;
      }
      EXPECT_EQ(count[row], known ? total[e] : 0) << "expert " << e;
    }
    for (const int32_t row : rows) count[row] = 0;
  }
}

TEST_P(ResidencyCopies, RefuseWhatIsOutOfOrder) {
  const auto wishes = random_wishes(GetParam().experts, c.ranks, 6);
  EXPECT_THROW(c.residency.finish_acquire(), Error);
  c.residency.begin_acquire(wishes[c.rank]);
  EXPECT_THROW(c.residency.begin_acquire({}), Error);
  EXPECT_THROW(c.residency.drop_copies(), Error);
  EXPECT_THROW(c.residency.return_gradients(), Error);
  c.residency.finish_acquire();
  const auto experts = static_cast<int32_t>(GetParam().experts);
  EXPECT_THROW(c.residency.acquire(std::vector<int32_t>{experts}), Error);
  EXPECT_THROW(c.residency.acquire(std::vector<int32_t>{-1}), Error);
  const bool has_copies = c.residency.copies() > 0;
  if (has_copies) {
    c.residency.touch(static_cast<int32_t>(c.residency.owned()));
    EXPECT_THROW(c.residency.drop_copies(), Error);
  }
  c.residency.return_gradients();
  c.residency.drop_copies();
}

INSTANTIATE_TEST_SUITE_P(All, ResidencyCopies,
                         ::testing::Values(Shape{41, SumPrecision::f64, false},
                                           Shape{41, SumPrecision::f32, true},
                                           Shape{600, SumPrecision::f64, true},
                                           Shape{3, SumPrecision::f64, false},
                                           Shape{2, SumPrecision::f32, true}));

}  // namespace
}  // namespace airmoe::test
