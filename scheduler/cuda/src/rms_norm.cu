#include <algorithm>

#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/src/row_sums.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = kWarpsPerBlock * kWarp;
static_assert(kThreads == kChunk);

// One warp per row.
template <class T, int kChunks>
__global__ void __launch_bounds__(kThreads)
    rms_norm_forward_kernel(const float* x, const T* branch, const float* __restrict__ gain,
                            float epsilon, int64_t n, int64_t d, float* x_out, T* normed,
                            float* inverse) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
  if (row >= n) return;
  float value[kChunks][8];
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = c * kChunk + lane * 8;
    if (column >= d) continue;
    load8(x + row * d + column, value[c]);
    if (branch != nullptr) {
      float add[8];
      load8(branch + row * d + column, add);
#pragma unroll
      for (int i = 0; i < 8; ++i) value[c][i] += add[i];
      store8(x_out + row * d + column, value[c]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += value[c][i] * value[c][i];
  }
  const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(d) + epsilon);
  if (lane == 0) inverse[row] = scale;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = c * kChunk + lane * 8;
    if (column >= d) continue;
    float g[8];
    load8(gain + column, g);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] *= value[c][i] * scale;
    store8(normed + row * d + column, g);
  }
}

// A warp takes rows `warps` apart and keeps the gain's gradient in registers.
template <class G, class T, int kChunks>
__global__ void __launch_bounds__(kThreads)
    rms_norm_backward_kernel(const G* d_out, const float* x, const float* __restrict__ gain,
                             const float* __restrict__ inverse, int64_t n, int64_t d,
                             const float* d_residual, float* d_x, T* d_x_copy, float* partial) {
  __shared__ float shared[kWarpsPerBlock * kChunk];
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = gridDim.x * static_cast<int64_t>(kWarpsPerBlock);
  float gain_sum[kChunks][8] = {};
  for (int64_t row = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
       row < n; row += warps) {
    const float scale = inverse[row];
    float pull[kChunks][8], in[kChunks][8];  // pull: d_out * gain
    float dot = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t column = c * kChunk + lane * 8;
      if (column >= d) continue;
      float weight[8];
      load8(d_out + row * d + column, pull[c]);
      load8(x + row * d + column, in[c]);
      load8(gain + column, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        gain_sum[c][i] += pull[c][i] * in[c][i] * scale;
        pull[c][i] *= weight[i];
        dot += pull[c][i] * in[c][i];
      }
    }
    // The mean of squares depends on every element: its share is -x scale^3 / d * dot.
    const float share = warp_sum(dot) / static_cast<float>(d) * scale * scale * scale;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t column = c * kChunk + lane * 8;
      if (column >= d) continue;
      float out[8] = {};
      if (d_residual != nullptr) load8(d_residual + row * d + column, out);
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] += pull[c][i] * scale - in[c][i] * share;
      store8(d_x + row * d + column, out);
      if (d_x_copy != nullptr) store8(d_x_copy + row * d + column, out);
    }
  }
  store_block_sums(gain_sum, shared, d, partial + blockIdx.x * d);
}

}  // namespace

template <class T>
void rms_norm_forward(const float* x, const T* branch, const float* gain, float epsilon, int64_t n,
                      int64_t d, float* x_out, T* normed, float* inverse, cudaStream_t stream) {
  if (n == 0) return;
  with_chunks(d, [&](auto chunks) {
    const auto blocks = static_cast<unsigned>((n + kWarpsPerBlock - 1) / kWarpsPerBlock);
    rms_norm_forward_kernel<T, chunks.value>
        <<<blocks, kThreads, 0, stream>>>(x, branch, gain, epsilon, n, d, x_out, normed, inverse);
  });
  AIRMOE_CUDA_LAUNCHED();
}

template <class G, class T>
void rms_norm_backward(const G* d_out, const float* x, const float* gain, const float* inverse,
                       int64_t n, int64_t d, const float* d_residual, float* d_x, T* d_x_copy,
                       float* d_gain, ColumnSums& columns, cudaStream_t stream) {
  if (n == 0) return;
  const int64_t blocks = std::min(kColumnBlocks, (n + kWarpsPerBlock - 1) / kWarpsPerBlock);
  float* partial = columns.partial(blocks, d);
  with_chunks(d, [&](auto chunks) {
    rms_norm_backward_kernel<G, T, chunks.value>
        <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
            d_out, x, gain, inverse, n, d, d_residual, d_x, d_x_copy, partial);
  });
  AIRMOE_CUDA_LAUNCHED();
  columns.add(partial, blocks, d, d, d_gain, stream);
}

template void rms_norm_forward(const float*, const float*, const float*, float, int64_t, int64_t,
                               float*, float*, float*, cudaStream_t);
template void rms_norm_forward(const float*, const __nv_bfloat16*, const float*, float, int64_t,
                               int64_t, float*, __nv_bfloat16*, float*, cudaStream_t);
template void rms_norm_backward(const float*, const float*, const float*, const float*, int64_t,
                                int64_t, const float*, float*, float*, float*, ColumnSums&,
                                cudaStream_t);
template void rms_norm_backward(const float*, const float*, const float*, const float*, int64_t,
                                int64_t, const float*, float*, __nv_bfloat16*, float*, ColumnSums&,
                                cudaStream_t);
template void rms_norm_backward(const __nv_bfloat16*, const float*, const float*, const float*,
                                int64_t, int64_t, const float*, float*, __nv_bfloat16*, float*,
                                ColumnSums&, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
