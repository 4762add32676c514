#include <algorithm>
#include <cfloat>

#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/src/row_sums.cuh"
#include "scheduler/trunk/layer_norm.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * kWarp;

// 0 when the row differs from its mean by no more than what rounding the mean to fp32 leaves.
__device__ float inverse_deviation(float variance, float mean) {
  const double noise = 4.0 * static_cast<double>(FLT_EPSILON) * static_cast<double>(mean);
  if (static_cast<double>(variance) <= noise * noise) return 0.0f;
  return 1.0f / sqrtf(variance + kLayerNormEpsilon);
}

// One warp per row.
template <class T, int kChunks>
__global__ void __launch_bounds__(kThreads)
    layer_norm_forward_kernel(const float* __restrict__ x, const float* __restrict__ gain,
                              const float* __restrict__ bias, int64_t n, int64_t d,
                              T* __restrict__ unit, float* __restrict__ inverse,
                              T* __restrict__ out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
  if (row >= n) return;
  float value[kChunks][8];
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = c * kChunk + lane * 8;
    if (column >= d) continue;
    load8(x + row * d + column, value[c]);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += value[c][i];
  }
  const float mean = warp_sum(sum) / static_cast<float>(d);
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c * kChunk + lane * 8 >= d) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      value[c][i] -= mean;
      squares += value[c][i] * value[c][i];
    }
  }
  const float scale = inverse_deviation(warp_sum(squares) / static_cast<float>(d), mean);
  if (lane == 0) inverse[row] = scale;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = c * kChunk + lane * 8;
    if (column >= d) continue;
    float g[8], b[8];
    load8(gain + column, g);
    load8(bias + column, b);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      value[c][i] *= scale;
      b[i] += value[c][i] * g[i];
    }
    store8(unit + row * d + column, value[c]);
    store8(out + row * d + column, b);
  }
}

// Leaves [gain | bias] of each block in partial. Shape: [blocks, 2 d]
template <class T, int kChunks>
__global__ void __launch_bounds__(kThreads)
    layer_norm_backward_kernel(const float* __restrict__ d_out, const T* __restrict__ unit,
                               const float* __restrict__ gain, const float* __restrict__ inverse,
                               int64_t n, int64_t d, T* __restrict__ d_x,
                               float* __restrict__ partial) {
  __shared__ float shared[kWarpsPerBlock * kChunk];
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = gridDim.x * static_cast<int64_t>(kWarpsPerBlock);
  float gain_sum[kChunks][8] = {}, bias_sum[kChunks][8] = {};
  for (int64_t row = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
       row < n; row += warps) {
    float pull[kChunks][8], u[kChunks][8];  // pull: d_out * gain
    float sum = 0.0f, dot = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t column = c * kChunk + lane * 8;
      if (column >= d) continue;
      float weight[8];
      load8(d_out + row * d + column, pull[c]);
      load8(unit + row * d + column, u[c]);
      load8(gain + column, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        gain_sum[c][i] += pull[c][i] * u[c][i];
        bias_sum[c][i] += pull[c][i];
        pull[c][i] *= weight[i];
        sum += pull[c][i];
        dot += pull[c][i] * u[c][i];
      }
    }
    const float mean = warp_sum(sum) / static_cast<float>(d);
    const float slope = warp_sum(dot) / static_cast<float>(d);
    const float scale = inverse[row];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t column = c * kChunk + lane * 8;
      if (column >= d) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) pull[c][i] = (pull[c][i] - mean - u[c][i] * slope) * scale;
      store8(d_x + row * d + column, pull[c]);
    }
  }
  store_block_sums(gain_sum, shared, d, partial + blockIdx.x * 2 * d);
  store_block_sums(bias_sum, shared, d, partial + blockIdx.x * 2 * d + d);
}

}  // namespace

template <class T>
void layer_norm_forward(const float* x, const float* gain, const float* bias, int64_t n, int64_t d,
                        T* unit, float* inverse, T* out, cudaStream_t stream) {
  if (n == 0) return;
  with_chunks(d, [&](auto chunks) {
    const auto blocks = static_cast<unsigned>((n + kWarpsPerBlock - 1) / kWarpsPerBlock);
    layer_norm_forward_kernel<T, chunks.value>
        <<<blocks, kThreads, 0, stream>>>(x, gain, bias, n, d, unit, inverse, out);
  });
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void layer_norm_backward(const float* d_out, const T* unit, const float* gain, const float* inverse,
                         int64_t n, int64_t d, T* d_x, float* d_gain, float* d_bias,
                         ColumnSums& columns, cudaStream_t stream) {
  if (n == 0) return;
  const int64_t blocks = std::min(kColumnBlocks, (n + kWarpsPerBlock - 1) / kWarpsPerBlock);
  float* partial = columns.partial(blocks, 2 * d);
  with_chunks(d, [&](auto chunks) {
    layer_norm_backward_kernel<T, chunks.value>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(d_out, unit, gain, inverse, n, d,
                                                                 d_x, partial);
  });
  AIRMOE_CUDA_LAUNCHED();
  columns.add(partial, blocks, d, 2 * d, d_gain, stream);
  columns.add(partial + d, blocks, d, 2 * d, d_bias, stream);
}

template void layer_norm_forward(const float*, const float*, const float*, int64_t, int64_t, float*,
                                 float*, float*, cudaStream_t);
template void layer_norm_forward(const float*, const float*, const float*, int64_t, int64_t,
                                 __nv_bfloat16*, float*, __nv_bfloat16*, cudaStream_t);
template void layer_norm_backward(const float*, const float*, const float*, const float*, int64_t,
                                  int64_t, float*, float*, float*, ColumnSums&, cudaStream_t);
template void layer_norm_backward(const float*, const __nv_bfloat16*, const float*, const float*,
                                  int64_t, int64_t, __nv_bfloat16*, float*, float*, ColumnSums&,
                                  cudaStream_t);

}  // namespace airmoe::scheduler::cuda
