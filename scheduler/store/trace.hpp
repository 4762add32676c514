#pragma once
// Traces: what the MoE layers did in chosen steps, for others to check us with. One HDF5 file:
//
//   /step_NNNNNN                 attribute step
//   /step_NNNNNN/layer_ii        attributes layer, active, jitter, activation (gelu, silu, relu,
//   swiglu)
//     hidden [T, d]   codeword [T]   expert [T, K]   gate [T, K]   output [T, d] (before LayerNorm)
//     home_rank [T]   the T tokens of the global batch in global order; expert is ordered by id
//     centroid [E, d]   up [E, m, d]   down [E, m, d]   gate_proj [E, m, d] (swiglu only)
//     codebook [G, d]   shortlist [G, M]     as this forward pass used them
//
// Integers are i32, the rest f32.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "scheduler/store/sharded_file.hpp"

namespace airmoe::scheduler {

inline constexpr const char* kTraceFormat = "airmoe-trace";
inline constexpr int64_t kTraceVersion = 1;

/// One MoE layer of a traced step.
struct TraceLayer {
  int64_t layer = 0;       ///< index in the trunk, from 0
  int64_t active = 0;      ///< K
  double jitter = 0;       ///< standard deviation that this pass used
  std::string activation;  ///< gelu, silu, relu or swiglu
  /// `path` is the name only, for example "hidden"; rows as in write_sharded_file. Arrays that are
  /// equal on all ranks (codebook, shortlist) have rows on one rank only.
  std::vector<StoredArray> arrays;
};

/// Adds steps to a trace file. After each step the file on disk is complete, sealed and readable.
///
/// Each step copies the file to a temporary one (in the kernel; shared extents where the file
/// system has them), adds to that and renames it: a crash can lose the step being added and nothing
/// else. HDF5 cannot promise that for changes in place. The copy costs one read and write of the
/// older steps, which is small for the few steps that are worth tracing.
class TraceWriter {
 public:
  enum class Mode : uint8_t {
    create,  ///< the first step replaces an older file of that name
    extend,  ///< keep the steps of an existing trace; a step traced again replaces its older self
  };
  /// Collective. `config_json` and `writer` become root attributes. Mode::extend with a file that
  /// is no sealed trace throws Error(ExitCode::bad_data).
  TraceWriter(comm::Communicator& comm, std::string path, Mode mode, std::string config_json,
              std::string writer);
  /// Collective; errors as write_sharded_file.
  WriteResult add_step(int64_t step, std::span<const TraceLayer> layers);
  const std::string& path() const { return path_; }

 private:
  comm::Communicator& comm_;
  std::string path_;
  bool extend_;
  std::string config_json_;
  std::string writer_;
};

}  // namespace airmoe::scheduler
