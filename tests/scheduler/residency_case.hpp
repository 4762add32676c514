#pragma once
// Experts whose every element says which expert, array and column it belongs to, in exact small
// integers, spread over the ranks by an ExpertResidency.

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "comm/stats_communicator.hpp"
#include "scheduler/residency/expert_residency.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::test {

using scheduler::ExpertResidency;
using scheduler::SumPrecision;

/// Owners: blocks that differ by at most one, the larger ones first.
inline std::vector<int32_t> block_homes(int64_t experts, int ranks) {
  std::vector<int32_t> home;
  for (int r = 0; r < ranks; ++r) {
    const int64_t size = experts / ranks + (r < experts % ranks ? 1 : 0);
    home.insert(home.end(), static_cast<std::size_t>(size), r);
  }
  return home;
}

/// As many experts per rank, anywhere.
inline std::vector<int32_t> random_homes(int64_t experts, int ranks, uint32_t seed) {
  std::vector<int32_t> home = block_homes(experts, ranks);
  std::shuffle(home.begin(), home.end(), std::mt19937(seed));
  return home;
}

/// The experts of a rank, ascending.
inline std::vector<int32_t> experts_of(const std::vector<int32_t>& home, int rank) {
  std::vector<int32_t> mine;
  for (std::size_t e = 0; e < home.size(); ++e) {
    if (home[e] == rank) mine.push_back(static_cast<int32_t>(e));
  }
  return mine;
}

/// What an element holds in a generation of the parameters.
inline float element(int64_t expert, int array, int64_t column, int generation = 0) {
  return static_cast<float>(expert * 64 + array * 16 + column + 65536 * generation);
}

/// Two value arrays, an owned one and two gradients.
struct ResidencyCase {
  static constexpr int64_t kUnit = 3, kUp = 5, kMoment = 2;
  static constexpr int64_t kWidth = kUnit + kUp;  // values of a copy, and gradients

  comm::StatsCommunicator comm;
  int rank, ranks;
  Buffer<float> unit, up, moment;
  Buffer<double> d_unit, d_up;
  ExpertResidency residency;

  ResidencyCase(int64_t experts, SumPrecision sums)
      : comm(world()), rank(comm.rank()), ranks(comm.size()), residency(comm, experts, sums) {
    const int64_t n = residency.owned();
    unit.ensure(n * kUnit);
    up.ensure(n * kUp);
    moment.ensure(n * kMoment);
    d_unit = Buffer<double>(n * kUnit, 0.0);
    d_up = Buffer<double>(n * kUp, 0.0);
    residency.add_values(unit, kUnit);
    residency.add_values(up, kUp);
    residency.add_owned(moment, kMoment);
    residency.add_gradients(d_unit, kUnit);
    residency.add_gradients(d_up, kUp);
    write(0);
  }

  std::vector<int32_t> homes() const {
    return {residency.homes().begin(), residency.homes().end()};
  }
  int64_t sent(const char* phase) const { return comm.stats(phase).bytes_sent; }

  /// The owners' rows.
  void write(int generation) {
    for (int64_t row = 0; row < residency.owned(); ++row) {
      const int32_t e = residency.expert(row);
      for (int64_t i = 0; i < kUnit; ++i) unit[row * kUnit + i] = element(e, 0, i, generation);
      for (int64_t i = 0; i < kUp; ++i) up[row * kUp + i] = element(e, 1, i, generation);
      for (int64_t i = 0; i < kMoment; ++i) {
        moment[row * kMoment + i] = element(e, 2, i, generation);
      }
    }
  }
  void expect_values(int64_t row, int generation) const {
    const int32_t e = residency.expert(row);
    for (int64_t i = 0; i < kUnit; ++i) {
      EXPECT_EQ(unit[row * kUnit + i], element(e, 0, i, generation)) << "expert " << e;
    }
    for (int64_t i = 0; i < kUp; ++i) {
      EXPECT_EQ(up[row * kUp + i], element(e, 1, i, generation)) << "expert " << e;
    }
  }
  void expect_owned(int generation) const {
    for (int64_t row = 0; row < residency.owned(); ++row) {
      expect_values(row, generation);
      for (int64_t i = 0; i < kMoment; ++i) {
        EXPECT_EQ(moment[row * kMoment + i], element(residency.expert(row), 2, i, generation));
      }
    }
  }

  /// Rows and experts say the same: owned ones by id first, then `copies`, each once; no others.
  void expect_index(const std::vector<int32_t>& home, std::vector<int32_t> copies) const {
    const std::vector<int32_t> mine = experts_of(home, rank);
    const std::span<const int32_t> owned = residency.owned_experts();
    EXPECT_EQ(homes(), home);
    EXPECT_EQ(std::vector<int32_t>(owned.begin(), owned.end()), mine);
    EXPECT_EQ(residency.owned(), std::ssize(mine));
    EXPECT_EQ(residency.copies(), std::ssize(copies));
    EXPECT_EQ(residency.rows(), residency.owned() + residency.copies());
    EXPECT_EQ(unit.size(), residency.rows() * kUnit);
    EXPECT_EQ(up.size(), residency.rows() * kUp);
    EXPECT_EQ(d_unit.size(), residency.rows() * kUnit);
    EXPECT_EQ(d_up.size(), residency.rows() * kUp);
    EXPECT_EQ(moment.size(), residency.owned() * kMoment);
    int64_t here = 0;
    for (int32_t e = 0; e < residency.experts(); ++e) {
      const int32_t row = residency.row(e);
      here += row >= 0;
      if (row >= 0) {
        EXPECT_EQ(residency.expert(row), e);
      }
    }
    EXPECT_EQ(here, residency.rows());
    std::vector<int32_t> got;
    for (int64_t row = residency.owned(); row < residency.rows(); ++row) {
      got.push_back(residency.expert(row));
    }
    std::sort(got.begin(), got.end());
    std::sort(copies.begin(), copies.end());
    EXPECT_EQ(got, copies);
  }
};

/// What every rank asks for: some experts several times, some of its own; one expert for all; a
/// rank (seed modulo ranks) nothing. The same on all ranks.
inline std::vector<std::vector<int32_t>> random_wishes(int64_t experts, int ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(experts) - 1);
  const int32_t famous = any(random);
  std::vector<std::vector<int32_t>> wishes(ranks);
  for (int r = 0; r < ranks; ++r) {
    for (int64_t i = 0; i < experts * 2 / 3; ++i) wishes[r].push_back(any(random));
    wishes[r].push_back(famous);
    if (ranks > 1 && r == static_cast<int>(seed) % ranks) wishes[r].clear();
  }
  return wishes;
}

/// The distinct ones that `rank` does not own, ascending.
inline std::vector<int32_t> copies_of(std::vector<int32_t> wishes, const std::vector<int32_t>& home,
                                      int rank) {
  std::sort(wishes.begin(), wishes.end());
  wishes.erase(std::unique(wishes.begin(), wishes.end()), wishes.end());
  std::erase_if(wishes, [&](int32_t e) { return home[e] == rank; });
  return wishes;
}

}  // namespace airmoe::test
