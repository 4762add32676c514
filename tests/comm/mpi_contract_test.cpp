// The MPI backend: as it is, with long messages cut into pieces, and under the decorators.

#include "comm/mpi_communicator.hpp"
#include "tests/comm/communicator_contract.hpp"

namespace airmoe::comm {
namespace {

std::shared_ptr<Communicator> make_plain(double deadline_seconds) {
  return make_mpi_communicator({.deadline_seconds = deadline_seconds});
}

std::shared_ptr<Communicator> make_in_pieces(double deadline_seconds) {
  return make_mpi_communicator({.deadline_seconds = deadline_seconds, .max_message_bytes = 1000});
}

std::shared_ptr<Communicator> make_decorated(double deadline_seconds) {
  return decorated(make_plain(deadline_seconds));
}

const auto kBackends =
    ::testing::Values(Backend{"plain", make_plain}, Backend{"in_pieces", make_in_pieces},
                      Backend{"decorated", make_decorated});

INSTANTIATE_TEST_SUITE_P(Mpi, CollectiveContract, kBackends, backend_name);
INSTANTIATE_TEST_SUITE_P(Mpi, ExchangeContract, kBackends, backend_name);
INSTANTIATE_TEST_SUITE_P(Mpi, SparseContract, kBackends, backend_name);

TEST(MpiCommunicator, OrderedSumOfMoreThanOneBlock) {
  check_ordered_sum<float>(test::world(), (int64_t{8} << 20) + 13);
}

TEST(MpiCommunicator, RefusesBadOptions) {
  EXPECT_THROW(make_mpi_communicator({.deadline_seconds = 0}), Error);
  EXPECT_THROW(make_mpi_communicator({.max_message_bytes = int64_t{1} << 31}), Error);
}

TEST(MpiCommunicator, TrafficOfTwoCommunicatorsIsSeparate) {
  Communicator& a = test::world();
  const auto b = make_plain(60);
  const int right = (a.rank() + 1) % a.size();
  const int left = (a.rank() + a.size() - 1) % a.size();
  const std::vector<int32_t> one = {1};
  const std::vector<int32_t> two = {2};
  std::vector<int32_t> from_a(1);
  std::vector<int32_t> from_b(1);
  const auto start = [&](Communicator& comm, const std::vector<int32_t>& out,
                         std::vector<int32_t>& in) {
    const std::vector<Send<int32_t>> sends = {{right, out}};
    const std::vector<Recv<int32_t>> recvs = {{left, in}};
    return comm.exchange<int32_t>(sends, recvs, 0);
  };
  Ticket first;
  Ticket second;
  if (a.rank() % 2 == 0) {
    first = start(a, one, from_a);
    second = start(*b, two, from_b);
  } else {
    second = start(*b, two, from_b);
    first = start(a, one, from_a);
  }
  first.wait();
  second.wait();
  EXPECT_EQ(from_a, one);
  EXPECT_EQ(from_b, two);
}

}  // namespace
}  // namespace airmoe::comm
