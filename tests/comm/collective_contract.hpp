#pragma once
// Part of communicator_contract.hpp: the collectives.

#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include "tests/comm/contract_fixture.hpp"

namespace airmoe::comm {

TEST_P(CollectiveContract, BarrierWaitsForTheLast) {
  using Clock = std::chrono::steady_clock;
  test::on_all_ranks(true);
  const auto start = Clock::now();
  if (rank_ == size_ - 1) std::this_thread::sleep_for(std::chrono::milliseconds(150));
  comm_->barrier();
  EXPECT_GE(Clock::now() - start, std::chrono::milliseconds(100));
}

TEST_P(CollectiveContract, BroadcastFromEveryRoot) {
  for (int root = 0; root < size_; ++root) {
    for (const int64_t count : {0, 1, 999}) {
      std::vector<int64_t> data = message(rank_, 0, count);
      comm_->broadcast(std::span(data), root);
      EXPECT_EQ(data, message(root, 0, count));
    }
  }
}

template <class T>
void check_integer_all_reduce(Communicator& comm) {
  const int64_t size = comm.size();
  for (const int64_t count : {0, 1, 777}) {
    std::vector<T> sum(static_cast<std::size_t>(count));
    std::vector<T> max(sum.size());
    std::vector<T> min(sum.size());
    std::vector<T> expected_sum(sum.size());
    std::vector<T> expected_max(sum.size());
    std::vector<T> expected_min(sum.size());
    for (int64_t i = 0; i < count; ++i) {
      sum[i] = static_cast<T>(i % 10 + comm.rank());
      max[i] = min[i] = sum[i];
      expected_sum[i] = static_cast<T>(size * (i % 10) + size * (size - 1) / 2);
      expected_max[i] = static_cast<T>(i % 10 + size - 1);
      expected_min[i] = static_cast<T>(i % 10);
    }
    comm.all_reduce(std::span(sum), Reduction::sum);
    comm.all_reduce(std::span(max), Reduction::max);
    comm.all_reduce(std::span(min), Reduction::min);
    EXPECT_EQ(sum, expected_sum);
    EXPECT_EQ(max, expected_max);
    EXPECT_EQ(min, expected_min);
  }
}

TEST_P(CollectiveContract, AllReduceOfEveryType) {
  check_integer_all_reduce<uint8_t>(*comm_);
  check_integer_all_reduce<int32_t>(*comm_);
  check_integer_all_reduce<uint32_t>(*comm_);
  check_integer_all_reduce<int64_t>(*comm_);
  check_integer_all_reduce<uint64_t>(*comm_);
  check_integer_all_reduce<float>(*comm_);  // small integers are exact
  check_integer_all_reduce<double>(*comm_);
  EXPECT_EQ(comm_->all_reduce_value(rank_ + 1, Reduction::max), size_);
}

/// Magnitudes from 2^-20 to 2^20 and both signs, so that the order of a sum shows in its bits.
template <class T>
T rough_value(int rank, int64_t i) {
  uint64_t x = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(rank + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  const double mantissa = static_cast<double>(x >> 11) / 9007199254740992.0 - 0.5;
  return static_cast<T>(std::ldexp(mantissa, static_cast<int>(x % 41) - 20));
}

/// Compares bits, and says how many differ instead of printing all.
template <class T>
void check_ordered_sum(Communicator& comm, int64_t count) {
  std::vector<T> data(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) data[i] = rough_value<T>(comm.rank(), i);
  comm.all_reduce(std::span(data), Reduction::sum);
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    double sum = rough_value<T>(0, i);
    for (int r = 1; r < comm.size(); ++r) sum += static_cast<double>(rough_value<T>(r, i));
    if (data[i] != static_cast<T>(sum)) ++wrong;
  }
  EXPECT_EQ(wrong, 0) << "of " << count;
}

TEST_P(CollectiveContract, FloatingPointSumsAreInRankOrder) {
  for (const int64_t count : {1, 2, 7, 512, 1024, 1025, 5003}) {
    check_ordered_sum<float>(*comm_, count);
    check_ordered_sum<double>(*comm_, count);
  }
}

TEST_P(CollectiveContract, NotANumberWinsMaxAndMin) {
  for (const int64_t count : {3, 3000}) {
    for (const Reduction op : {Reduction::max, Reduction::min}) {
      std::vector<float> data(static_cast<std::size_t>(count), static_cast<float>(rank_));
      if (rank_ == size_ / 2) data.back() = std::numeric_limits<float>::quiet_NaN();
      comm_->all_reduce(std::span(data), op);
      EXPECT_TRUE(std::isnan(data.back()));
      EXPECT_EQ(data.front(), op == Reduction::max ? static_cast<float>(size_ - 1) : 0.0f);
    }
  }
}

TEST_P(CollectiveContract, AllGather) {
  for (const int64_t count : {0, 1, 300}) {
    std::vector<int64_t> expected;
    for (int r = 0; r < size_; ++r) {
      const auto part = message(r, 0, count);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    std::vector<int64_t> recv(expected.size());
    comm_->all_gather<int64_t>(message(rank_, 0, count), recv);
    EXPECT_EQ(recv, expected);
  }
}

TEST_P(CollectiveContract, GatherWithCountsToAllAndToEveryRoot) {
  for (const int64_t factor : {0, 1, 100}) {
    std::vector<int64_t> counts;
    std::vector<int64_t> expected;
    for (int r = 0; r < size_; ++r) {
      counts.push_back(r % 2 == 0 ? factor * (r + 1) : 0);  // odd ranks have nothing
      const auto part = message(r, 0, counts.back());
      expected.insert(expected.end(), part.begin(), part.end());
    }
    const auto mine = message(rank_, 0, counts[rank_]);
    std::vector<int64_t> recv(expected.size());
    comm_->all_gather_v<int64_t>(mine, recv, counts);
    EXPECT_EQ(recv, expected);
    for (int root = 0; root < size_; ++root) {
      std::vector<int64_t> at_root(rank_ == root ? expected.size() : 0);
      comm_->gather_v<int64_t>(mine, at_root, counts, root);
      if (rank_ == root) {
        EXPECT_EQ(at_root, expected);
      }
    }
  }
}

using CountOf = std::function<int64_t(int from, int to)>;

inline void check_all_to_all(Communicator& comm, const CountOf& count_of,
                             const std::function<std::vector<int64_t>(int, int, int64_t)>& data) {
  const int rank = comm.rank();
  std::vector<int64_t> send;
  std::vector<int64_t> expected;
  std::vector<int64_t> send_counts;
  std::vector<int64_t> recv_counts;
  for (int r = 0; r < comm.size(); ++r) {
    send_counts.push_back(count_of(rank, r));
    recv_counts.push_back(count_of(r, rank));
    const auto out = data(rank, r, send_counts.back());
    const auto in = data(r, rank, recv_counts.back());
    send.insert(send.end(), out.begin(), out.end());
    expected.insert(expected.end(), in.begin(), in.end());
  }
  std::vector<int64_t> recv(expected.size());
  comm.all_to_all_v<int64_t>(send, send_counts, recv, recv_counts);
  EXPECT_EQ(recv, expected);
}

TEST_P(CollectiveContract, AllToAll) {
  const int size = size_;
  check_all_to_all(
      *comm_, [](int, int) { return 0; }, message);
  check_all_to_all(
      *comm_, [](int from, int to) { return 5 * from + to; }, message);
  check_all_to_all(
      *comm_, [](int from, int to) { return (from + to) % 2 * 200; }, message);
  // All to one, and one to all.
  check_all_to_all(
      *comm_, [=](int, int to) { return to == size - 1 ? 150 : 0; }, message);
  check_all_to_all(
      *comm_, [](int from, int) { return from == 0 ? 150 : 0; }, message);
}

TEST_P(CollectiveContract, WrongArgumentsAreErrors) {
  std::vector<int64_t> data(4);
  std::vector<int64_t> counts(static_cast<std::size_t>(size_), 1);
  std::vector<int64_t> recv(static_cast<std::size_t>(size_) + 1);
  EXPECT_THROW(comm_->broadcast(std::span(data), size_), Error);
  EXPECT_THROW(comm_->all_gather<int64_t>(data, recv), Error);
  EXPECT_THROW(comm_->all_gather_v<int64_t>(data, recv, counts), Error);
  EXPECT_THROW(comm_->all_to_all_v<int64_t>(recv, counts, recv, counts), Error);
  counts.back() = -1;
  EXPECT_THROW(comm_->all_to_all_v<int64_t>({}, counts, recv, counts), Error);
}

TEST_P(CollectiveContract, AMissingRankIsNamedByTheDeadline) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  use_deadline(0.2);
  if (rank_ == 0) {
    const ScopedPhase outer(*comm_, "outer");
    try {
      const ScopedPhase inner(*comm_, "list rebuild");
      comm_->barrier();
      ADD_FAILURE() << "the barrier ended without the others";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      const std::string text = error.what();
      EXPECT_NE(text.find("rank 0: phase list rebuild: barrier"), std::string::npos) << text;
    }
    EXPECT_STREQ(comm_->phase(), "outer");
  }
  test::on_all_ranks(true);  // where the others are meanwhile
}

}  // namespace airmoe::comm
