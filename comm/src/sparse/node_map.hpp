#pragma once
// Which ranks share a node.

#include <cstdint>
#include <vector>

#include <mpi.h>

namespace airmoe::comm {

/// Nodes are numbered by their first rank; their ranks ascend.
struct NodeMap {
  std::vector<int> node_of;                ///< Shape: [ranks]
  std::vector<int> place_of;               ///< among the ranks of the node. Shape: [ranks]
  std::vector<std::vector<int>> ranks_of;  ///< by node

  int num_nodes() const { return static_cast<int>(ranks_of.size()); }
};

/// Collective. Ranks that can share memory are one node; `ranks_per_node` > 0 cuts these further,
/// into runs of so many ranks, so that one machine can play several nodes.
NodeMap find_nodes(MPI_Comm comm, int64_t ranks_per_node);

}  // namespace airmoe::comm
