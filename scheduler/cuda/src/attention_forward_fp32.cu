// Causal attention in fp32: the same walk as in bf16, on ordinary arithmetic.

#include "scheduler/cuda/src/attention_fp32.cuh"

namespace airmoe::scheduler::cuda::attention {
namespace fp32 {
namespace {

/// Over the 16 threads that share rows.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int step = 1; step < kSide; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int step = 1; step < kSide; step *= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

template <int kDim>
__global__ __launch_bounds__(kThreads) void forward_kernel(Inputs<float> in, float* out,
                                                           float* log_sum) {
  constexpr int kM = kRows<kDim> / kSide;
  extern __shared__ float shared_floats[];
  float* const q_tile = shared_floats;
  float* const k_tile = q_tile + kTile<kDim>;
  float* const v_tile = k_tile + kTile<kDim>;
  float* const p_tile = v_tile + kTile<kDim>;  // [query, key]
  constexpr int kSquareLd = kRows<kDim> + 1;

  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int sequence = blockIdx.x / in.heads, head = blockIdx.x % in.heads;
  const int begin = (gridDim.y - 1 - blockIdx.y) * kRows<kDim>;
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const float* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const float* v = in.v + first * in.ld_v + head / in.group * in.head_dim;

  float top[kM], total[kM], sums[kM][kDim / kSide] = {};
#pragma unroll
  for (int i = 0; i < kM; ++i) top[i] = -INFINITY, total[i] = 0.0f;
  load_tile<kDim>(q_tile, in.q + (first + begin) * in.ld_q + head * in.head_dim, in.ld_q,
                  in.context - begin, in.head_dim);
  for (int key = 0; key <= begin; key += kRows<kDim>) {
    __syncthreads();
    load_tile<kDim>(k_tile, k + key * in.ld_k, in.ld_k, in.context - key, in.head_dim);
    load_tile<kDim>(v_tile, v + key * in.ld_v, in.ld_v, in.context - key, in.head_dim);
    __syncthreads();
    float scores[kM][kM] = {};
    multiply<kDim>(scores, rows_of<kDim>(q_tile), rows_of<kDim>(k_tile));
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      float highest = top[i];
#pragma unroll
      for (int j = 0; j < kM; ++j) {
        const bool hidden = key + x + kSide * j > begin + y + kSide * i;
        scores[i][j] = hidden ? -INFINITY : scores[i][j] * in.scale;
        highest = fmaxf(highest, scores[i][j]);
      }
      highest = row_max(highest);
      const float shrink = expf(top[i] - highest);
      top[i] = highest;
      total[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kM; ++j) {
        const float p = expf(scores[i][j] - highest);
        total[i] += p;
        p_tile[(y + kSide * i) * kSquareLd + x + kSide * j] = p;
      }
#pragma unroll
      for (int j = 0; j < kDim / kSide; ++j) sums[i][j] *= shrink;
    }
    __syncthreads();
    multiply<kRows<kDim>>(sums, Operand{p_tile, kSquareLd, 1}, columns_of<kDim>(v_tile));
  }
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const float all = row_sum(total[i]);
    const int row = begin + y + kSide * i;
    if (x == 0 && row < in.context) {
      log_sum[static_cast<int64_t>(blockIdx.x) * in.context + row] = top[i] + logf(all);
    }
#pragma unroll
    for (int j = 0; j < kDim / kSide; ++j) sums[i][j] /= all;
  }
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  store(sums, 1.0f, out + (first + begin) * ld_out + head * in.head_dim, ld_out, in.context - begin,
        in.head_dim);
}

template <int kDim>
void launch(const Inputs<float>& in, int64_t sequences, float* out, float* log_sum,
            cudaStream_t stream) {
  constexpr int kBytes = (3 * kTile<kDim> + kSquare<kDim>)*static_cast<int>(sizeof(float));
  const auto kernel = forward_kernel<kDim>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(sequences * in.heads),
                  (in.context + kRows<kDim> - 1) / kRows<kDim>);
  kernel<<<grid, kThreads, kBytes, stream>>>(in, out, log_sum);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace
}  // namespace fp32

template <>
void launch_forward(const Inputs<float>& in, int64_t sequences, float* out, float* log_sum, int*,
                    cudaStream_t stream) {
  if (in.head_dim <= 16) return fp32::launch<16>(in, sequences, out, log_sum, stream);
  if (in.head_dim <= 32) return fp32::launch<32>(in, sequences, out, log_sum, stream);
  if (in.head_dim <= 64) return fp32::launch<64>(in, sequences, out, log_sum, stream);
  fp32::launch<128>(in, sequences, out, log_sum, stream);
}

}  // namespace airmoe::scheduler::cuda::attention
