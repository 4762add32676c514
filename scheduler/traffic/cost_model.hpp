#pragma once
// Predicted time of the expert-parallel part of a step: latency, bandwidth, memory, compute.
//
//   rank: messages * latency + max(bytes sent, bytes received) / bandwidth
//         + bytes touched in memory / memory bandwidth + FLOPs / FLOP rate
//   step: the slowest rank
//
// A rank sends and receives at once; nothing else overlaps. It is a ranking, not a forecast: no
// congestion, no difference between nodes and sockets.

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::scheduler {

/// Of one rank. The defaults are round numbers for 16 cores of a server on a 100 Gbit/s network.
struct MachineConstants {
  double latency_s = 5e-6;                ///< per message, of its sender
  double bandwidth_bytes_per_s = 12.5e9;  ///< each way
  double memory_bandwidth_bytes_per_s = 100e9;
  double flops = 1e12;  ///< per second, single precision

  /// Throws Error(ExitCode::usage) naming the constant that is not positive and finite.
  void validate() const;
};

/// Local. `base` with what the JSON file of `airmoe-bench network` says: numbers under the names of
/// the fields, at the top level or in an object "machine". Throws Error(ExitCode::bad_data) when it
/// is no such file or has none of them, Error(ExitCode::io) when it cannot be read.
MachineConstants read_machine_constants(const std::string& path, MachineConstants base = {});

/// What one rank spends in a step.
struct RankCost {
  double messages = 0;
  double sent = 0, received = 0;  ///< bytes
  double touched = 0;             ///< bytes of memory read or written
  double flops = 0;

  double seconds(const MachineConstants& machine) const;
};

/// FLOPs of pairs, forward and backward: 2 d per scored (token, candidate); for a selected one 4 d
/// for the gradients of its score and three times 2 d m per matrix of the expert.
double pair_flops(double scored, double selected, const TrafficShape& shape);

/// Bytes that experts with a row here and payload move through memory: payload twice (packed,
/// unpacked); per copy its values, and its gradient in double twice; per owned expert what AdamW
/// reads and writes (28 bytes per value) and the gradient.
double touched_bytes(double payload, double owned, double copies, const TrafficShape& shape);

RankCost cost_of(const StepPrediction& step, int rank, const TrafficShape& shape);
/// Local. Seconds of the slowest rank.
double predicted_seconds(const StepPrediction& step, const TrafficShape& shape,
                         const MachineConstants& machine);

/// Bytes that a rank holds: experts (values in float, gradients in double; owned ones also raw
/// centroid and two moments), centroids alone, and about 32 d bytes per token that it computes for.
double memory_bytes(const RankLoad& load, const TrafficShape& shape);

}  // namespace airmoe::scheduler
