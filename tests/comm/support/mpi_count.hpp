#pragma once
// Counts what this process hands to MPI, between MPI and everything above it: the calls of the
// profiling interface (MPI standard, chapter "Tool Support"). mpi_count.cpp defines MPI_Isend and
// others in place of the library's.

#include <cstdint>
#include <map>
#include <string>

#include "comm/forwarding_communicator.hpp"

namespace airmoe::test {

/// Of one phase. To other ranks only.
struct MpiCount {
  int64_t sends = 0, send_bytes = 0;                          ///< MPI_Send, MPI_Isend
  int64_t synchronous_sends = 0, synchronous_send_bytes = 0;  ///< MPI_Ssend, MPI_Issend
  // What StatsCommunicator promises to count of MPI's collectives, from their arguments:
  int64_t gathers_to_all = 0, gather_to_all_bytes = 0;  ///< one's part to each other rank
  int64_t broadcasts = 0, broadcast_bytes = 0;          ///< once, at the root
  int64_t reductions = 0, reduction_bytes = 0;          ///< once, on every rank
  int64_t neighbour_sends = 0, neighbour_bytes = 0;     ///< per neighbour that gets something
};

/// By phase, since the last reset.
std::map<std::string, MpiCount>& mpi_counts();

/// Tells the counter the phase. Put it below StatsCommunicator.
class PhaseTap final : public comm::ForwardingCommunicator {
 public:
  explicit PhaseTap(comm::Communicator& inner);
  ~PhaseTap() override;

 private:
  void do_set_phase(const char* phase) override;
};

}  // namespace airmoe::test
