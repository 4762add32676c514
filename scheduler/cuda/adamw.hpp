#pragma once
// AdamW over all parameters of a device in one kernel. Specification: scheduler/optim/adamw.hpp.

#include <cstdint>

#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/optim/adamw.hpp"

namespace airmoe::scheduler::cuda {

/// Local, asynchronous, but the first call waits (DeviceParameters::tiles). One update of every
/// element, with the bits of adamw_step() on the host: moments, decoupled decay, value, copy in the
/// compute type; gradients become zero, unless of tracked rows (expert_rows.hpp), of which those
/// that may wait are updated later.
/// @param step         1 for the first update; throws Error when smaller
/// @param clip_factor  device; multiplies the gradients; nullptr: 1
/// @param skip         device; not 0: nothing is changed; nullptr: 0
template <class T>
void adamw_step(DeviceParameters<T>& parameters, const AdamWOptions& options, float learning_rate,
                int64_t step, const float* clip_factor, const int* skip, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
