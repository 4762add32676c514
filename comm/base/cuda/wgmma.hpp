#pragma once
// Whether kernels with the warp-group products of wgmma.cuh can run.

namespace airmoe::cuda {

/// Local: whether the current device has the warp-group products of Hopper and this build uses
/// them.
bool has_wgmma();

}  // namespace airmoe::cuda
