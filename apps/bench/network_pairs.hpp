#pragma once
// What one message costs between two ranks, and what a rank can do by itself.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/bench/network_timing.hpp"
#include "comm/node_map.hpp"

namespace airmoe::bench {

/// Seconds of a message of b bytes: latency_s + b / bandwidth_bytes_per_s.
struct LinkConstants {
  double latency_s = 0;
  double bandwidth_bytes_per_s = 0;
};

/// The line through (bytes, seconds) with the least squares of relative errors; latency at least 0.
LinkConstants fit_link(const std::vector<double>& bytes, const std::vector<double>& seconds);

/// Two ranks of one class: "same_node" or "other_node".
struct RankPair {
  std::string name;
  int first, second;
};
/// One pair per class that exists.
std::vector<RankPair> rank_pairs(const comm::NodeMap& nodes);

struct NamedCommunicator {
  std::string name;  ///< of the transport
  comm::Communicator* comm;
};

/// Collective. Ping-pong between the ranks of `pair`, while the others wait. One entry per
/// transport and size: half a round trip. Prints a table on rank 0.
/// @param constants  by transport
nlohmann::json measure_pair(const RankPair& pair, const std::vector<NamedCommunicator>& transports,
                            const std::vector<int64_t>& sizes, const NetworkEffort& effort,
                            std::vector<LinkConstants>& constants);

/// Collective. Bytes per second of copies of memory beyond the caches, all ranks at once, per rank.
double measure_memory_bandwidth(comm::Communicator& comm, const NetworkEffort& effort);

/// Collective. Multiply-adds (two FLOPs each) per second of products of [256, 256] and [256, 2048]
/// matrices, the shape of scoring, all ranks at once, per rank.
double measure_flops(comm::Communicator& comm, const NetworkEffort& effort);

}  // namespace airmoe::bench
