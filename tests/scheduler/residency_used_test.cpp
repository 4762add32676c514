// Values that only used copies fetch.

#include "comm/stats_communicator.hpp"
#include "scheduler/residency/expert_residency.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::test {
namespace {

using scheduler::ExpertResidency;
using scheduler::SumPrecision;

TEST(ResidencyUsed, OnlyUsedCopiesFetchTheRestAndOnlyOnce) {
  constexpr int64_t kExperts = 23;
  comm::StatsCommunicator comm(world());
  const int ranks = comm.size();
  const int rank = comm.rank();
  ExpertResidency residency(comm, kExperts, SumPrecision::f64);
  Buffer<float> early(residency.owned() * 2), late(residency.owned() * 3);
  residency.add_values(early, 2);
  residency.add_values(late, 3, ExpertResidency::Fetch::when_used);
  for (int64_t row = 0; row < residency.owned(); ++row) {
    const auto e = static_cast<float>(residency.expert(row));
    for (int64_t i = 0; i < 2; ++i) early[row * 2 + i] = 10 * e + static_cast<float>(i);
    for (int64_t i = 0; i < 3; ++i) late[row * 3 + i] = 1000 * e + static_cast<float>(i);
  }
  // Every rank holds all experts; rank r uses those that r + 2 divides, some of them twice.
  std::vector<int32_t> all;
  for (int32_t e = 0; e < kExperts; ++e) all.push_back(e);
  residency.acquire(all);
  const int64_t copies = kExperts - residency.owned();
  EXPECT_EQ(residency.copies(), copies);
  const auto expect = [&](bool used_only) {
    for (int32_t e = 0; e < kExperts; ++e) {
      const int32_t row = residency.row(e);
      EXPECT_EQ(early[row * 2 + 1], 10.0f * static_cast<float>(e) + 1.0f);
      const bool has = row < residency.owned() || !used_only || e % (rank + 2) == 0;
      EXPECT_EQ(residency.lacks_values(row), !has) << "expert " << e;
      if (!has) continue;
      EXPECT_EQ(late[row * 3 + 2], 1000.0f * static_cast<float>(e) + 2.0f);
    }
  };
  std::vector<int32_t> used;
  for (int32_t e = 0; e < kExperts; e += rank + 2) used.push_back(residency.row(e));
  used.push_back(used.front());
  comm.reset();
  residency.fetch_used(used);
  expect(true);
  int64_t asked = 0, lent = 0;
  for (int32_t e = 0; e < kExperts; ++e) {
    asked += residency.home(e) != rank && e % (rank + 2) == 0;
    for (int r = 0; r < ranks; ++r) {
      lent += r != rank && residency.home(e) == rank && e % (r + 2) == 0;
    }
  }
  EXPECT_EQ(comm.stats("copies").bytes_sent, 4 * asked + 4 * 3 * lent);
  comm.reset();
  residency.fetch_used(used);
  EXPECT_EQ(comm.stats("copies").bytes_sent, 0);
  residency.fetch_used(all);  // rows 0 .. E-1: every row
  expect(false);
  residency.drop_copies();
  residency.acquire(all);
  for (int64_t row = residency.owned(); row < residency.rows(); ++row) {
    EXPECT_TRUE(residency.lacks_values(static_cast<int32_t>(row)));
  }
}

}  // namespace
}  // namespace airmoe::test
