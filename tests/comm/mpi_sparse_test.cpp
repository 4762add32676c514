// The algorithms of a sparse exchange: the contract for each, also on several nodes and with every
// message cut, and their choice.

#include "comm/mpi_communicator.hpp"
#include "tests/comm/sparse_contract.hpp"

namespace airmoe::comm {
namespace {

Backend backend(const char* name, SparseAlgorithm algorithm, int64_t ranks_per_node,
                int64_t max_message_bytes, bool names_missing) {
  const MpiOptions options = {.max_message_bytes = max_message_bytes,
                              .sparse_algorithm = algorithm,
                              .ranks_per_node = ranks_per_node};
  return {name,
          [options](double deadline_seconds) -> std::shared_ptr<Communicator> {
            MpiOptions o = options;
            o.deadline_seconds = deadline_seconds;
            return make_mpi_communicator(o);
          },
          names_missing};
}

constexpr int64_t kWhole = int64_t{1} << 30;
constexpr int64_t kOdd = 1001;  // pieces end inside elements

// One rank per node has no neighbours, two give uneven nodes where ranks are odd.
const auto kBackends =
    ::testing::Values(backend("pairwise", SparseAlgorithm::pairwise, 0, kWhole, true),
                      backend("nbx", SparseAlgorithm::nbx, 0, kWhole, true),
                      backend("neighbour", SparseAlgorithm::neighbour, 0, kWhole, false),
                      backend("one_node", SparseAlgorithm::node_aware, 0, kWhole, true),
                      backend("nodes_of_1", SparseAlgorithm::node_aware, 1, kWhole, true),
                      backend("nodes_of_2", SparseAlgorithm::node_aware, 2, kWhole, false),
                      backend("nodes_of_3", SparseAlgorithm::node_aware, 3, kWhole, false),
                      backend("pairwise_odd", SparseAlgorithm::pairwise, 0, kOdd, true),
                      backend("nbx_odd", SparseAlgorithm::nbx, 0, kOdd, true),
                      backend("neighbour_odd", SparseAlgorithm::neighbour, 0, kOdd, false),
                      backend("one_node_odd", SparseAlgorithm::node_aware, 0, kOdd, true),
                      backend("nodes_of_2_odd", SparseAlgorithm::node_aware, 2, kOdd, false));

INSTANTIATE_TEST_SUITE_P(Mpi, SparseContract, kBackends, backend_name);

/// Messages of 1 to 50 bytes in pieces of at most 8, the smallest allowed.
TEST(SparseAlgorithm, TinyPieces) {
  for (const SparseAlgorithm algorithm : kSparseAlgorithms) {
    for (const int64_t ranks_per_node : {0, 2}) {
      const auto comm = make_mpi_communicator({.deadline_seconds = 60,
                                               .max_message_bytes = 8,
                                               .sparse_algorithm = algorithm,
                                               .ranks_per_node = ranks_per_node});
      const auto size_of = [](int from, int to, int k) { return (from * 7 + to * 5 + k * 9) % 51; };
      const auto byte_of = [](int from, int to, int k, int i) {
        return static_cast<uint8_t>(from * 101 + to * 37 + k * 11 + i);
      };
      const auto make = [&](int from, int to, int k) {
        std::vector<uint8_t> m(static_cast<std::size_t>(size_of(from, to, k)));
        for (std::size_t i = 0; i < m.size(); ++i) m[i] = byte_of(from, to, k, static_cast<int>(i));
        return m;
      };
      std::vector<std::vector<uint8_t>> sent;
      std::vector<Send<uint8_t>> sends;
      std::vector<uint8_t> expected;
      sent.reserve(3 * static_cast<std::size_t>(comm->size()));
      for (int peer = 0; peer < comm->size(); ++peer) {
        for (int k = 0; k < 3; ++k) {
          sent.push_back(make(comm->rank(), peer, k));
          sends.push_back({peer, sent.back()});
          const auto in = make(peer, comm->rank(), k);
          expected.insert(expected.end(), in.begin(), in.end());
        }
      }
      Inbox<uint8_t> inbox;
      comm->sparse_exchange<uint8_t>(sends, inbox);
      EXPECT_EQ(std::vector<uint8_t>(inbox.data().begin(), inbox.data().end()), expected)
          << name_of(algorithm) << ", " << ranks_per_node << " ranks per node";
    }
  }
}

TEST(SparseAlgorithm, Names) {
  for (const SparseAlgorithm algorithm : kSparseAlgorithms) {
    EXPECT_EQ(parse_sparse_algorithm(name_of(algorithm), "--x"), algorithm);
  }
  try {
    parse_sparse_algorithm("fast", "--sparse-algorithm");
    ADD_FAILURE() << "no such algorithm";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_STREQ(error.what(),
                 "--sparse-algorithm fast: unknown; choose one of automatic, pairwise, nbx, "
                 "neighbour, node_aware");
  }
}

TEST(SparseAlgorithm, AutomaticDependsOnNodesAndRanks) {
  using enum SparseAlgorithm;
  EXPECT_EQ(resolve(automatic, 16, 1), node_aware);
  EXPECT_EQ(resolve(automatic, 16, 4), node_aware);
  EXPECT_EQ(resolve(automatic, 16, 16), pairwise);
  EXPECT_EQ(resolve(automatic, 1000, 500), nbx);
  EXPECT_EQ(resolve(neighbour, 1000, 500), neighbour);
}

TEST(SparseAlgorithm, RefusesBadOptions) {
  EXPECT_THROW(make_mpi_communicator({.ranks_per_node = -1}), Error);
}

}  // namespace
}  // namespace airmoe::comm
