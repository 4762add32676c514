#include "comm/base/cuda/device.hpp"
#include "scheduler/cuda/src/vector8.cuh"
#include "scheduler/cuda/swiglu.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

// A thread computes eight elements of one row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    swiglu_forward_kernel(const T* __restrict__ gate_up, uint32_t total, uint32_t octets,
                          T* __restrict__ hidden) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  const uint32_t row = index / octets;
  const T* at = gate_up + (static_cast<int64_t>(row) * octets + index) * 8;
  float gate[8], up[8];
  load8(at, gate);
  load8(at + octets * int64_t{8}, up);
#pragma unroll
  for (int i = 0; i < 8; ++i) up[i] *= gate[i] * sigmoid(gate[i]);
  store8(hidden + index * int64_t{8}, up);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    swiglu_backward_kernel(const T* gate_up, const T* __restrict__ d_hidden, uint32_t total,
                           uint32_t octets, T* d_gate_up) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  const uint32_t row = index / octets;
  const int64_t offset = (static_cast<int64_t>(row) * octets + index) * 8;
  float gate[8], up[8], d[8];
  load8(gate_up + offset, gate);
  load8(gate_up + offset + octets * int64_t{8}, up);
  load8(d_hidden + index * int64_t{8}, d);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float s = sigmoid(gate[i]);
    const float silu = gate[i] * s;
    const float slope = s + silu * (1.0f - s);
    gate[i] = d[i] * up[i] * slope;
    up[i] = d[i] * silu;
  }
  store8(d_gate_up + offset, gate);
  store8(d_gate_up + offset + octets * int64_t{8}, up);
}

int64_t checked_octets(int64_t n, int64_t f) {
  if (f % 8 != 0) {
    fail(ExitCode::config, "--ffn-dim {} is not a multiple of 8 as a device needs: choose {}", f,
         (f + 7) / 8 * 8);
  }
  AIRMOE_CHECK(n * (f / 8) < int64_t{1} << 31, "{} rows of {} hidden values are too many", n, f);
  return f / 8;
}

}  // namespace

template <class T>
void swiglu_forward(const T* gate_up, int64_t n, int64_t f, T* hidden, cudaStream_t stream) {
  const int64_t octets = checked_octets(n, f), total = n * octets;
  if (total == 0) return;
  const auto blocks = static_cast<unsigned>((total + kThreads - 1) / kThreads);
  swiglu_forward_kernel<<<blocks, kThreads, 0, stream>>>(gate_up, total,
                                                         static_cast<uint32_t>(octets), hidden);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void swiglu_backward(const T* gate_up, const T* d_hidden, int64_t n, int64_t f, T* d_gate_up,
                     cudaStream_t stream) {
  const int64_t octets = checked_octets(n, f), total = n * octets;
  if (total == 0) return;
  const auto blocks = static_cast<unsigned>((total + kThreads - 1) / kThreads);
  swiglu_backward_kernel<<<blocks, kThreads, 0, stream>>>(gate_up, d_hidden, total,
                                                          static_cast<uint32_t>(octets), d_gate_up);
  AIRMOE_CUDA_LAUNCHED();
}

template void swiglu_forward(const float*, int64_t, int64_t, float*, cudaStream_t);
template void swiglu_forward(const __nv_bfloat16*, int64_t, int64_t, __nv_bfloat16*, cudaStream_t);
template void swiglu_backward(const float*, const float*, int64_t, int64_t, float*, cudaStream_t);
template void swiglu_backward(const __nv_bfloat16*, const __nv_bfloat16*, int64_t, int64_t,
                              __nv_bfloat16*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
