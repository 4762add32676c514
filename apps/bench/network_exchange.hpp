#pragma once
// Every way to exchange messages between many ranks, on the same traffic.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/bench/network_pairs.hpp"
#include "apps/bench/network_timing.hpp"

namespace airmoe::bench {

/// One way to exchange messages.
struct ExchangeContender {
  std::string name;  ///< "mpi sparse, nbx"
  comm::Communicator* comm;
  bool knows_sizes;  ///< by exchange(), else by sparse_exchange()
};

/// Which ranks talk: every pair, or each rank to `peers` others.
struct Traffic {
  std::string name;
  std::vector<int> receivers;  ///< of this rank
  std::vector<int> senders;    ///< to this rank
};
/// Local.
Traffic dense_traffic(int rank, int size);
/// Local. Receivers are spread evenly over the ranks.
Traffic sparse_traffic(int rank, int size, int64_t peers);

/// Collective. One message of `bytes` per pair, by MPI_Alltoallv with sizes known everywhere (the
/// baseline), by MPI_Alltoall of the sizes and then MPI_Alltoallv, and by every contender. All are
/// checked before they are timed. Prints lines of a table on rank 0.
nlohmann::json measure_exchange(comm::Communicator& control, const Traffic& traffic, int64_t bytes,
                                const std::vector<ExchangeContender>& contenders,
                                const NetworkEffort& effort);

/// Collective. all_reduce of float sums by each transport.
nlohmann::json measure_all_reduce(comm::Communicator& control, int64_t bytes,
                                  const std::vector<NamedCommunicator>& transports,
                                  const NetworkEffort& effort);

}  // namespace airmoe::bench
