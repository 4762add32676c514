#pragma once
// How often experts were selected, and the balance loss (router/balance.hpp), on a device.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::router::cuda {

using airmoe::cuda::CodewordTokens;
using airmoe::cuda::DeviceLists;
using airmoe::cuda::SelectedPairs;

/// count[e] = selections of expert e in this micro-batch (overwritten, by integer atomics: exact);
/// window[e] += the same, unless window is nullptr.
/// Shapes: [experts]; device memory. Asynchronous. Local.
void count_selections(const DeviceLists& lists, const CodewordTokens& tokens,
                      const SelectedPairs& pairs, int64_t experts, int32_t* count, int64_t* window,
                      cudaStream_t stream);

struct BalanceWorkspace {
  airmoe::cuda::DeviceBuffer<double> partial;
};

/// *value += slope * sum over pairs of count[expert] * gate, in double and in a fixed order: the
/// balance loss weight * E * sum_e f_e P_e where slope = weight * E / (tokens * K * tokens) (times
/// whatever else scales the loss). The counts may be sums over several ranks.
/// Shapes: count [experts], value [1]; device memory. Asynchronous. Local.
void add_balance_loss(const DeviceLists& lists, const CodewordTokens& tokens,
                      const SelectedPairs& pairs, const int32_t* count, double slope, double* value,
                      BalanceWorkspace& workspace, cudaStream_t stream);

/// d_gate += slope * count[expert], its gradient (f is not differentiated).
/// Shape of d_gate: [n, K], place order; device memory. Asynchronous. Local.
void add_balance_gradient(const DeviceLists& lists, const CodewordTokens& tokens,
                          const SelectedPairs& pairs, const int32_t* count, float slope,
                          float* d_gate, cudaStream_t stream);

}  // namespace airmoe::router::cuda
