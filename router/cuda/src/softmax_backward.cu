// A warp per place; the second reading of a place's pairs comes from the first-level cache.

#include "comm/base/cuda/device.hpp"
#include "router/cuda/softmax_backward.hpp"

namespace airmoe::router::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(32 * kWarps)
    softmax_backward_kernel(const float* gate, const float* d_gate, int active, int64_t n,
                            float* d_score) {
  const int lane = threadIdx.x & 31;
  const int64_t place = int64_t{blockIdx.x} * kWarps + (threadIdx.x >> 5);
  if (place >= n) return;
  gate += place * active;
  d_gate += place * active;
  d_score += place * active;
  float dot = 0.0f;
#pragma unroll 4
  for (int p = lane; p < active; p += 32) dot = fmaf(gate[p], d_gate[p], dot);
  for (int step = 16; step > 0; step >>= 1) dot += __shfl_xor_sync(~0u, dot, step);
#pragma unroll 4
  for (int p = lane; p < active; p += 32) d_score[p] = gate[p] * (d_gate[p] - dot);
}

}  // namespace

void softmax_backward(const float* gate, const float* d_gate, int64_t active, int64_t n,
                      float* d_score, cudaStream_t stream) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>((n + kWarps - 1) / kWarps);
  softmax_backward_kernel<<<blocks, 32 * kWarps, 0, stream>>>(gate, d_gate,
                                                              static_cast<int>(active), n, d_score);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::router::cuda
