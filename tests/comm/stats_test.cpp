// StatsCommunicator: bytes, messages and calls by phase.

#include <chrono>
#include <thread>

#include "comm/stats_communicator.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::comm {
namespace {

class StatsTest : public ::testing::Test {
 protected:
  StatsTest() : rank_(stats_.rank()), size_(stats_.size()), others_(size_ - 1) {}
  void expect(const char* phase, int64_t calls, int64_t bytes, int64_t messages) {
    const PhaseStats s = stats_.stats(phase);
    EXPECT_EQ(s.calls, calls) << phase;
    EXPECT_EQ(s.bytes_sent, bytes) << phase;
    EXPECT_EQ(s.messages_sent, messages) << phase;
  }
  StatsCommunicator stats_{test::world()};
  int rank_;
  int size_;
  int64_t others_;
};

TEST_F(StatsTest, ExchangeCountsOtherRanksOnlyAndNoEmptyMessages) {
  const std::vector<float> data(10, 1.0f);
  std::vector<std::vector<float>> in(static_cast<std::size_t>(size_));
  std::vector<Send<float>> sends;
  std::vector<Recv<float>> recvs;
  for (int r = 0; r < size_; ++r) {
    // r elements to rank r: nothing to rank 0.
    sends.push_back({r, std::span(data).first(static_cast<std::size_t>(r))});
    in[r].resize(static_cast<std::size_t>(rank_));
    recvs.push_back({r, in[r]});
  }
  Ticket ticket;
  {
    const ScopedPhase phase(stats_, "dispatch");
    ticket = stats_.exchange<float>(sends, recvs, 0);
  }
  ticket.wait();
  int64_t bytes = 0;
  int64_t messages = 0;
  for (int r = 1; r < size_; ++r) {
    if (r != rank_) bytes += 4 * r, ++messages;
  }
  expect("dispatch", 1, bytes, messages);
  {
    const ScopedPhase phase(stats_, "sparse");
    Inbox<float> inbox;
    stats_.sparse_exchange(sends, inbox);
    stats_.sparse_exchange({}, inbox);
  }
  expect("sparse", 2, bytes, messages);
}

TEST_F(StatsTest, Collectives) {
  const auto n = static_cast<std::size_t>(size_);
  {
    const ScopedPhase phase(stats_, "all_to_all");
    std::vector<int64_t> send_counts(n, rank_);
    std::vector<int64_t> recv_counts(n);
    for (int r = 0; r < size_; ++r) recv_counts[r] = r;
    const std::vector<double> send(static_cast<std::size_t>(rank_ * size_));
    std::vector<double> recv(static_cast<std::size_t>(size_ * (size_ - 1) / 2));
    stats_.all_to_all_v<double>(send, send_counts, recv, recv_counts);
  }
  expect("all_to_all", 1, others_ * rank_ * 8, rank_ == 0 ? 0 : others_);
  {
    const ScopedPhase phase(stats_, "gather");
    const std::vector<int32_t> one(1);
    std::vector<int32_t> all(n);
    const std::vector<int64_t> counts(n, 1);
    stats_.all_gather<int32_t>(one, all);
    stats_.all_gather_v<int32_t>(one, all, counts);
    stats_.gather_v<int32_t>(one, all, counts, 0);
  }
  const int64_t to_root = rank_ == 0 ? 0 : 1;
  expect("gather", 3, 8 * others_ + 4 * to_root, 2 * others_ + to_root);
  {
    const ScopedPhase phase(stats_, "payload");
    std::vector<int32_t> data(6);
    stats_.barrier();
    stats_.broadcast(std::span(data), size_ - 1);
    stats_.all_reduce(std::span(data), Reduction::sum);
  }
  const int64_t from_root = rank_ == size_ - 1 ? 1 : 0;
  if (size_ > 1) expect("payload", 3, 24 + 24 * from_root, 1 + from_root);
}

/// The sum over ranks is known without the partition: each part goes to its owner from every other
/// rank, and back to every other rank.
TEST_F(StatsTest, OrderedAllReduce) {
  for (const int64_t count : {1024, 1025, 10007}) {
    stats_.reset();
    const ScopedPhase phase(stats_, "all_reduce");
    std::vector<float> data(static_cast<std::size_t>(count));
    stats_.all_reduce(std::span(data), Reduction::sum);
    const PhaseStats mine = stats_.stats("all_reduce");
    const int64_t bytes = test::world().all_reduce_value(mine.bytes_sent, Reduction::sum);
    const int64_t messages = test::world().all_reduce_value(mine.messages_sent, Reduction::sum);
    const bool is_short = count * 4 <= 4096;
    EXPECT_EQ(bytes, (is_short ? size_ : 2) * others_ * count * 4);
    EXPECT_EQ(messages, (is_short ? 1 : 2) * others_ * size_);
  }
}

TEST_F(StatsTest, TimeIsThatOfThePhaseOfTheTicket) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  std::vector<float> data(1);
  Ticket ticket;
  test::on_all_ranks(true);
  {
    const ScopedPhase phase(stats_, "late");
    if (rank_ == 0) {
      const std::vector<Recv<float>> recvs = {{1, data}};
      ticket = stats_.exchange<float>({}, recvs, 0);
    } else if (rank_ == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      const std::vector<Send<float>> sends = {{0, data}};
      ticket = stats_.exchange<float>(sends, {}, 0);
    }
  }
  const ScopedPhase phase(stats_, "other");
  ticket.wait();
  stats_.barrier();
  const double seconds = stats_.stats("late").seconds;
  EXPECT_TRUE(rank_ == 0 ? seconds > 0.1 : seconds < 0.1) << seconds;
  EXPECT_EQ(stats_.stats("other").calls, 1);
}

TEST_F(StatsTest, ResetAndUnknownPhase) {
  {
    const ScopedPhase phase(stats_, "short-lived");
    stats_.barrier();
  }
  EXPECT_EQ(stats_.stats("short-lived").calls, 1);
  EXPECT_EQ(stats_.stats().size(), 1u);
  stats_.reset();
  expect("short-lived", 0, 0, 0);
  expect("never", 0, 0, 0);
}

}  // namespace
}  // namespace airmoe::comm
