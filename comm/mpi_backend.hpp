#pragma once
// The MPI backend on a communicator of the caller. The only public header that shows MPI_Comm.

#include <memory>

#include <mpi.h>

#include "comm/mpi_communicator.hpp"
#include "comm/node_map.hpp"

namespace airmoe::comm {

/// Collective over `parent`, which is duplicated and may be freed afterwards.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, const MpiOptions& options);

/// Collective over `comm`. Ranks are those of `comm`; see node_map.hpp.
NodeMap find_nodes(MPI_Comm comm, int64_t ranks_per_node);

}  // namespace airmoe::comm
