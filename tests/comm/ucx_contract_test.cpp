// The UCX backend: as it is, with every message cut into tiny pieces, between nodes, and under the
// decorators.

#include <set>

#include <sys/socket.h>

#include "comm/ucx_communicator.hpp"
#include "tests/comm/communicator_contract.hpp"

namespace airmoe::comm {
namespace {

std::shared_ptr<Communicator> make_plain(double deadline_seconds) {
  return make_ucx_communicator({.deadline_seconds = deadline_seconds});
}

std::shared_ptr<Communicator> make_in_pieces(double deadline_seconds) {
  return make_ucx_communicator({.deadline_seconds = deadline_seconds, .max_message_bytes = 24});
}

/// Every rank a node of its own: endpoints with error handling, over the transports of a network.
std::shared_ptr<Communicator> make_as_nodes(double deadline_seconds) {
  return make_ucx_communicator({.deadline_seconds = deadline_seconds, .ranks_per_node = 1});
}

std::shared_ptr<Communicator> make_decorated(double deadline_seconds) {
  return decorated(make_plain(deadline_seconds));
}

const auto kBackends =
    ::testing::Values(Backend{"plain", make_plain}, Backend{"in_pieces", make_in_pieces},
                      Backend{"as_nodes", make_as_nodes}, Backend{"decorated", make_decorated});

INSTANTIATE_TEST_SUITE_P(Ucx, CollectiveContract, kBackends, backend_name);
INSTANTIATE_TEST_SUITE_P(Ucx, ExchangeContract, kBackends, backend_name);
INSTANTIATE_TEST_SUITE_P(Ucx, SparseContract, kBackends, backend_name);

TEST(UcxCommunicator, RefusesBadOptions) {
  EXPECT_THROW(make_ucx_communicator({.deadline_seconds = 0}), Error);
  EXPECT_THROW(make_ucx_communicator({.max_message_bytes = 7}), Error);
  EXPECT_THROW(make_ucx_communicator({.ranks_per_node = -1}), Error);
}

/// Rank 0 sends and expects long messages; rank 1 does not answer while rank 0 gives up and ends.
void check_end_after_error(int64_t ranks_per_node) {
  using Clock = std::chrono::steady_clock;
  auto comm = make_ucx_communicator({.deadline_seconds = 0.3, .ranks_per_node = ranks_per_node});
  if (comm->rank() == 0) {
    const std::vector<uint8_t> out(10'000'000);
    std::vector<uint8_t> in(out.size());
    const std::vector<Send<uint8_t>> sends = {{1, out}};
    const std::vector<Recv<uint8_t>> recvs = {{1, in}};
    Ticket ticket = comm->exchange<uint8_t>(sends, recvs, 0);
    try {
      ticket.wait();
      ADD_FAILURE() << "nothing was received";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      EXPECT_NE(std::string(error.what()).find("rank 1 (to send) and rank 1 (to receive)"),
                std::string::npos)
          << error.what();
    }
    EXPECT_THROW(comm->barrier(), Error);  // it is good for nothing now
    Inbox<uint8_t> inbox;
    EXPECT_THROW(comm->sparse_exchange(sends, inbox), Error);
    const auto start = Clock::now();
    ticket = Ticket();
    comm.reset();
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  }
  test::on_all_ranks(true);  // where the others are until rank 0 has ended
  const auto start = Clock::now();
  comm.reset();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  test::on_all_ranks(true);
}

TEST(UcxCommunicator, EndsSoonAfterAnError) {
  if (test::world().size() == 1) GTEST_SKIP() << "needs two ranks";
  check_end_after_error(0);
  check_end_after_error(1);
}

/// The file descriptors of this process that are connected sockets.
std::set<int> connections() {
  std::set<int> found;
  for (int fd = 0; fd < 1024; ++fd) {
    sockaddr_storage peer{};
    socklen_t length = sizeof(peer);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0) found.insert(fd);
  }
  return found;
}

/// The last rank's cable is cut: it and rank 0, which would wait for a minute, learn of it soon.
TEST(UcxCommunicator, ALostConnectionEndsAWaitBeforeTheDeadline) {
  using Clock = std::chrono::steady_clock;
  const int rank = test::world().rank();
  const int last = test::world().size() - 1;
  if (last == 0) GTEST_SKIP() << "needs two ranks";
  const std::set<int> others = connections();
  auto comm = make_ucx_communicator({.deadline_seconds = 60, .ranks_per_node = 1});
  if (rank == 0 || rank == last) {
    std::vector<int64_t> in(4);
    const std::vector<int64_t> out(4);
    const int peer = rank == 0 ? last : 0;
    const std::vector<Send<int64_t>> sends = {{peer, out}};
    const std::vector<Recv<int64_t>> recvs = {{peer, in}};
    comm->exchange<int64_t>(sends, recvs, 0).wait();
    int cut = 0;
    for (const int fd : connections()) {
      if (rank == last && !others.contains(fd) && shutdown(fd, SHUT_RDWR) == 0) ++cut;
    }
    EXPECT_EQ(cut > 0, rank == last);
    const auto start = Clock::now();
    try {
      comm->exchange<int64_t>({}, recvs, 0).wait();
      ADD_FAILURE() << "nothing was sent";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      const std::string expected = "no answer from rank " + std::to_string(peer) +
                                   " (to send) (lost connections: rank " + std::to_string(peer);
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(30));
  }
  test::on_all_ranks(true);
  comm.reset();
}

TEST(UcxCommunicator, OrderedSumOfMoreThanOneBlock) {
  check_ordered_sum<float>(*make_plain(60), (int64_t{8} << 20) + 13);
}

}  // namespace
}  // namespace airmoe::comm
