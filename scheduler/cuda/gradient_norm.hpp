#pragma once
// Global gradient norm and clipping on a device, without the host. Specification:
// scheduler/optim/gradient_norm.hpp.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "scheduler/cuda/device_parameters.hpp"

namespace airmoe::scheduler::cuda {

struct GradientNormWorkspace {
  airmoe::cuda::DeviceBuffer<double> partial;
};

/// Sums of squared gradients in double, overwritten. Several ranks add up by_expert, and count
/// replicated once.
struct GradientSquares {
  double replicated = 0, by_expert = 0;
};

/// Local, asynchronous, deterministic. `squares` is in device memory.
template <class T>
void gradient_norm(DeviceParameters<T>& parameters, GradientSquares* squares,
                   GradientNormWorkspace& workspace, cudaStream_t stream);

/// What the update needs to know of a step.
struct ClipState {
  double norm = 0;   ///< sqrt of the sum of squares
  float factor = 1;  ///< clip_factor() of the host
  int32_t skip = 0;  ///< 1 where the norm or the loss is not finite: no update may be made
};

/// Local, asynchronous; all pointers to device memory.
/// @param loss  checked for finiteness; nullptr: not
/// @param clip  <= 0: no clipping
void clip_by_norm(const GradientSquares* squares, const double* loss, double clip, ClipState* state,
                  cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
