#pragma once
// Reads the routing of one layer in one step from a trace. All local.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/sum_precision.hpp"
#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::scheduler {

/// What to read. Without a step the last one is taken, without a layer the first one of the step.
struct TraceSelection {
  std::optional<int64_t> step = std::nullopt;
  std::optional<int64_t> layer = std::nullopt;
  std::optional<int64_t> experts = std::nullopt;  ///< E, where the file does not say
};

/// The routing of one layer, and what the file says about the model; no value where it says
/// nothing.
struct RecordedRouting {
  RoutingTrace routing;
  int64_t step = 0;
  int64_t layer = 0;
  std::optional<int64_t> dim, expert_dim;
  std::optional<std::string> activation;  ///< gelu, silu, relu or swiglu
  std::optional<double> jitter, balance_weight;
  std::optional<SumPrecision> sums;
};

/// Reads codeword [T], expert [T, K], shortlist [G, M] and, where present, home_rank [T] of
/// /step_NNNNNN/layer_ii. Any HDF5 file with these will do, whatever else it lacks, in any layout
/// and integer type; of a file with checksums (scheduler/store/trace.hpp) they are verified. HDF5
/// runs in a forked process. Throws Error(ExitCode::io) when the file cannot be opened,
/// Error(ExitCode::bad_data) naming file, dataset and fault, Error(ExitCode::usage) for a step or
/// layer that is not there, with those that are.
RecordedRouting read_routing(const std::string& path, const TraceSelection& selection = {});

}  // namespace airmoe::scheduler
