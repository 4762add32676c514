#pragma once
// What the factory needs of NCCL, also in builds without it.

#include <memory>

#include "comm/cuda/device_communicator.hpp"

namespace airmoe::comm::cuda {

/// Collective. Throws Error(ExitCode::config) where airmoe was built without NCCL.
std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Communicator& host,
                                                           double deadline_seconds);

}  // namespace airmoe::comm::cuda
