#include "comm/src/mpi_sparse_exchange.hpp"

#include <numeric>
#include <utility>
#include <vector>

#include "comm/mpi_backend.hpp"
#include "comm/src/sparse/header_exchange.hpp"
#include "comm/src/sparse/header_messages.hpp"
#include "comm/src/sparse/nbx.hpp"
#include "comm/src/sparse/neighbour.hpp"
#include "comm/src/sparse/node_aware.hpp"

namespace airmoe::comm {
namespace {

constexpr int64_t kPairwiseSlot = 3584;  // fits the first packet of shared-memory transports

std::unique_ptr<SparseRoute> make_pairwise(const SparseLink& link, int first_tag) {
  std::vector<int> peers(static_cast<std::size_t>(link.size));
  std::iota(peers.begin(), peers.end(), 0);
  peers.erase(peers.begin() + link.rank());
  return std::make_unique<HeaderExchange>(
      link, std::make_unique<HeaderMessages>(link, peers, peers, kPairwiseSlot, first_tag), peers,
      peers, first_tag + 1);
}

bool needs_nodes(SparseAlgorithm algorithm) {
  return algorithm == SparseAlgorithm::automatic || algorithm == SparseAlgorithm::node_aware;
}

}  // namespace

std::unique_ptr<SparseRoute> make_sparse_route(const SparseLink& link, const MpiOptions& options,
                                               int first_tag) {
  NodeMap nodes;
  if (needs_nodes(options.sparse_algorithm)) nodes = find_nodes(link.comm, options.ranks_per_node);
  switch (resolve(options.sparse_algorithm, link.size, nodes.num_nodes())) {
    case SparseAlgorithm::pairwise:
      return make_pairwise(link, first_tag);
    case SparseAlgorithm::nbx:
      return std::make_unique<NbxRoute>(link, std::array{first_tag, first_tag + 1}, first_tag + 2);
    case SparseAlgorithm::neighbour:
      return std::make_unique<NeighbourRoute>(link, first_tag);
    case SparseAlgorithm::node_aware:
      return std::make_unique<NodeAwareRoute>(link, std::move(nodes), first_tag);
    case SparseAlgorithm::automatic:
      break;
  }
  fail(ExitCode::failure, "unknown sparse algorithm {}",
       static_cast<int>(options.sparse_algorithm));
}

}  // namespace airmoe::comm
