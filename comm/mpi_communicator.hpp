#pragma once
// The MPI backend. mpi_backend.hpp has the form that takes an MPI_Comm.

#include <cstdint>
#include <memory>

#include "comm/communicator.hpp"
#include "comm/sparse_algorithm.hpp"

namespace airmoe::comm {

struct MpiOptions {
  /// Longest wait inside one call before Error(ExitCode::watchdog).
  double deadline_seconds = 600;
  /// Larger messages are cut into pieces of this many bytes; 8 to 2^31 - 8.
  int64_t max_message_bytes = int64_t{1} << 30;
  /// How sparse_exchange works; the same on all ranks.
  SparseAlgorithm sparse_algorithm = SparseAlgorithm::automatic;
  /// For tests and studies on one machine: every run of so many ranks plays a node. 0: nodes are
  /// the machines.
  int64_t ranks_per_node = 0;
};

/// Collective over all ranks of the run; needs a live MpiEnvironment, which must outlive the
/// result. Traffic is separate from that of every other communicator.
std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options = {});

}  // namespace airmoe::comm
