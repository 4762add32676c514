#pragma once
// Gradient of the gates with respect to the scores, on a device.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::router::cuda {

/// d_score = gate * (d_gate - sum of gate * d_gate over the place's K pairs). Sums in fp32, in an
/// order that depends on K only.
/// @param gate, d_gate  Shape: [n, active]
/// @param d_score       out; may be d_gate. Shape: [n, active]
/// Local; asynchronous on `stream`.
void softmax_backward(const float* gate, const float* d_gate, int64_t active, int64_t n,
                      float* d_score, cudaStream_t stream);

}  // namespace airmoe::router::cuda
