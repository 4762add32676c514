#pragma once
// The training step on a CUDA device, for engine.hpp. Plain C++ and there in every build: without
// CUDA, has_cuda() is false and making an engine is an error.

#include <memory>

#include "scheduler/train/engine.hpp"

namespace airmoe::scheduler {

/// Whether this build has the CUDA path; a device may still be missing.
bool has_cuda();

/// Local: on device (rank within the node) modulo the number of devices. Throws Error naming
/// --device when there is no device, or the configuration is one that the path does not do.
std::unique_ptr<Engine> make_cuda_engine(comm::Communicator& comm, Model& model,
                                         const TrainConfig& config);

}  // namespace airmoe::scheduler
