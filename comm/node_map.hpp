#pragma once
// Which ranks share a node.

#include <cstdint>
#include <vector>

namespace airmoe::comm {

/// Nodes are numbered by their first rank; their ranks ascend.
struct NodeMap {
  std::vector<int> node_of;                ///< Shape: [ranks]
  std::vector<int> place_of;               ///< among the ranks of the node. Shape: [ranks]
  std::vector<std::vector<int>> ranks_of;  ///< by node

  int num_nodes() const { return static_cast<int>(ranks_of.size()); }
};

/// Collective over all ranks of the run; needs a live MpiEnvironment; has no deadline. Ranks that
/// can share memory are one node; `ranks_per_node` > 0 cuts these further, into runs of so many
/// ranks, so that one machine can play several nodes. mpi_backend.hpp has the form that takes an
/// MPI_Comm.
NodeMap find_nodes(int64_t ranks_per_node = 0);

}  // namespace airmoe::comm
