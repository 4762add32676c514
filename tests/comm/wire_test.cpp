// StatsCommunicator against what this process handed to MPI, counted by the profiling interface.

#include <array>

#include "comm/mpi_communicator.hpp"
#include "comm/stats_communicator.hpp"
#include "tests/comm/support/wire_check.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::comm {
namespace {

/// Statistics over the tap over MPI.
class WireTest : public ::testing::Test {
 protected:
  explicit WireTest(SparseAlgorithm algorithm = SparseAlgorithm::nbx,
                    int64_t max_message_bytes = int64_t{1} << 30)
      : mpi_(make_mpi_communicator({.deadline_seconds = 60,
                                    .max_message_bytes = max_message_bytes,
                                    .sparse_algorithm = algorithm})),
        tap_(*mpi_),
        stats_(tap_),
        rank_(stats_.rank()),
        size_(stats_.size()) {
    test::mpi_counts().clear();
  }
  int64_t count_for(int peer) const { return (rank_ * 3 + peer * 5) % 7 * 100; }

  std::unique_ptr<Communicator> mpi_;
  test::PhaseTap tap_;
  StatsCommunicator stats_;
  int rank_;
  int size_;
};

TEST_F(WireTest, PointToPoint) {
  std::vector<std::vector<float>> out(static_cast<std::size_t>(size_)), in(out.size());
  std::vector<Send<float>> sends;
  std::vector<Recv<float>> recvs;
  for (int r = 0; r < size_; ++r) {
    out[r].resize(static_cast<std::size_t>(count_for(r)));
    in[r].resize(static_cast<std::size_t>((r * 3 + rank_ * 5) % 7 * 100));
    sends.push_back({r, out[r]});
    recvs.push_back({r, in[r]});
  }
  {
    const ScopedPhase phase(stats_, "dispatch");
    stats_.exchange<float>(sends, recvs, 0).wait();
    stats_.exchange<float>(sends, recvs, 5).wait();
  }
  {
    const ScopedPhase phase(stats_, "gather");
    std::vector<int64_t> counts(static_cast<std::size_t>(size_), 0);
    counts.back() = 9;
    const std::vector<double> mine(static_cast<std::size_t>(counts[rank_]), 1.0);
    std::vector<double> all(9);
    stats_.gather_v<double>(mine, all, counts, 0);
  }
  {
    const ScopedPhase phase(stats_, "all_to_all");
    std::vector<int64_t> send_counts, recv_counts;
    int64_t send_total = 0, recv_total = 0;
    for (int r = 0; r < size_; ++r) {
      send_counts.push_back(count_for(r));
      recv_counts.push_back((r * 3 + rank_ * 5) % 7 * 100);
      send_total += send_counts.back();
      recv_total += recv_counts.back();
    }
    const std::vector<int32_t> send(static_cast<std::size_t>(send_total));
    std::vector<int32_t> recv(static_cast<std::size_t>(recv_total));
    stats_.all_to_all_v<int32_t>(send, send_counts, recv, recv_counts);
  }
  test::expect_equal_counts(stats_, {.point_to_point_messages = true});
  EXPECT_EQ(stats_.stats().size(), 3u);
}

TEST_F(WireTest, Collectives) {
  const auto n = static_cast<std::size_t>(size_);
  {
    const ScopedPhase phase(stats_, "gathers");
    const std::vector<int32_t> three(3);
    std::vector<int32_t> all(3 * n);
    stats_.all_gather<int32_t>(three, all);
    stats_.all_gather<int32_t>({}, std::span<int32_t>());
    std::vector<int64_t> counts(n);
    int64_t total = 0;
    for (int r = 0; r < size_; ++r) total += counts[r] = r % 2 * 5;
    std::vector<int32_t> parts(static_cast<std::size_t>(total));
    const std::vector<int32_t> part(static_cast<std::size_t>(counts[rank_]));
    stats_.all_gather_v<int32_t>(part, parts, counts);
  }
  {
    const ScopedPhase phase(stats_, "others");
    std::vector<int64_t> data(17);
    stats_.barrier();
    stats_.broadcast(std::span(data), size_ - 1);
    stats_.all_reduce(std::span(data), Reduction::max);
  }
  {
    const ScopedPhase phase(stats_, "short sum");
    std::vector<float> data(100);
    stats_.all_reduce(std::span(data), Reduction::sum);
  }
  {
    const ScopedPhase phase(stats_, "long sum");
    std::vector<float> data(5003);
    stats_.all_reduce(std::span(data), Reduction::sum);
  }
  test::expect_equal_counts(stats_, {.point_to_point_messages = true});
  EXPECT_EQ(stats_.stats().size(), 4u);
}

/// Of the sparse exchange the counters hold the payload. What NBX adds is known: a header of 8
/// bytes per message, alone in front of a long one.
TEST_F(WireTest, SparseExchange) {
  std::vector<std::vector<uint8_t>> out;
  std::vector<Send<uint8_t>> sends;
  for (int r = 0; r < size_; ++r) {
    for (const int64_t count : {count_for(r), int64_t{0}, 9 * count_for(r) + 1}) {
      out.emplace_back(static_cast<std::size_t>(count));
      sends.push_back({r, out.back()});
    }
  }
  Inbox<uint8_t> inbox;
  {
    const ScopedPhase phase(stats_, "dispatch");
    stats_.sparse_exchange<uint8_t>(sends, inbox);
    stats_.sparse_exchange<uint8_t>({}, inbox);
    stats_.sparse_exchange<uint8_t>(sends, inbox);
  }
  test::expect_equal_counts(stats_, {});
  EXPECT_EQ(stats_.stats("dispatch").bytes_sent > 0, size_ > 1);
}

class CutWireTest : public WireTest {
 protected:
  CutWireTest() : WireTest(SparseAlgorithm::nbx, 10) {}
};

/// Pieces of a message are one message to the counters, and as many bytes.
TEST_F(CutWireTest, Pieces) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  const int right = (rank_ + 1) % size_;
  const int left = (rank_ + size_ - 1) % size_;
  const std::vector<uint8_t> out(101);
  std::vector<uint8_t> in(101);
  const std::array sends = {Send<uint8_t>{right, out}};
  const std::array recvs = {Recv<uint8_t>{left, in}};
  {
    const ScopedPhase phase(stats_, "dispatch");
    stats_.exchange<uint8_t>(sends, recvs, 0).wait();
  }
  test::expect_equal_counts(stats_, {});
  EXPECT_EQ(stats_.stats("dispatch").messages_sent, 1);
  EXPECT_EQ(test::mpi_counts()["dispatch"].sends, 11);
}

}  // namespace
}  // namespace airmoe::comm
