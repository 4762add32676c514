#pragma once
// Collects what one forward pass of every MoE layer did and adds it to a trace file.

#include "scheduler/store/trace.hpp"
#include "scheduler/train/engine.hpp"

namespace airmoe::scheduler {

/// Collective, after the forward (and backward) of a training micro-batch and before any parameter
/// or codebook changes.
/// @param first_token  global index of this rank's first token in the micro-batch
/// @param tokens       T, over all ranks
WriteResult add_trace_step(comm::Communicator& comm, Model& model, Engine& engine,
                           TraceWriter& writer, int64_t step, int64_t first_token, int64_t tokens);

}  // namespace airmoe::scheduler
