// Scores in bf16 on tensor cores: tiles of 128 codewords x 128 experts, a warp has 64 x 32 of them.
//
// Experts lie in shared memory in such an order that the fragments of a thread are of eight
// neighbouring experts: expert 8 q + 2 t + b of a warp's 32 is column 2 q + b of its t-th tile.

#include "comm/base/cuda/device.hpp"
#include "comm/base/cuda/mma.cuh"
#include "router/cuda/src/list_append.cuh"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::swizzled;

constexpr int kStep = 64;  // elements of k per stage
constexpr int kSegments = kStep / 8;
constexpr int kStages = 3;
constexpr int kOperandBytes = kListTile * kStep * 2;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kRowsPerCopy = kListThreads / kSegments;  // 32
constexpr int kCopies = kListTile / kRowsPerCopy;

template <bool kJitter>
__global__ void __launch_bounds__(kListThreads, 2)
    scores_bf16_kernel(ScoreTask<__nv_bfloat16> task) {
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ AppendShared shared;
  const int rows = *task.rows;
  if (static_cast<int>(blockIdx.x) * kListTile >= rows) return;
  start_append(task, rows, shared);

  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int dim = static_cast<int>(task.dim);
  const uint32_t base = airmoe::cuda::shared_address(stages);

  // Copies: this thread brings segment `segment` of rows row, row + 32, ... of both operands.
  const int segment = tid & (kSegments - 1), row = tid / kSegments;
  const int placed = (row >> 1 & 3) * 8 + (row >> 3) * 2 + (row & 1);
  int32_t a_row[kCopies];
#pragma unroll
  for (int j = 0; j < kCopies; ++j) {
    const int r = blockIdx.x * kListTile + row + j * kRowsPerCopy;
    a_row[j] = r < rows ? task.codeword[r] * dim + segment * 8 : -1;
  }
  const int64_t index = blockIdx.y * int64_t{kListTile} + row;
  const int64_t expert = (index >> 3) * 8 * task.stride + (index & 7);
  const int64_t expert_step = kRowsPerCopy * task.stride;
  const __nv_bfloat16* b_row = task.unit + expert * dim + segment * 8;
  const int steps = (dim + kStep - 1) / kStep;
  const auto copy = [&](int step) {
    const int k = step * kStep;
    const bool inside = k + segment * 8 < dim;
    const uint32_t a = base + step % kStages * kStageBytes, b = a + kOperandBytes;
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      airmoe::cuda::copy_async_16(a + swizzled<kSegments>(row + j * kRowsPerCopy, segment),
                                  task.codebook + a_row[j] + k, inside && a_row[j] >= 0);
    }
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      airmoe::cuda::copy_async_16(b + swizzled<kSegments>(placed + j * kRowsPerCopy, segment),
                                  b_row + j * expert_step * dim + k,
                                  inside && expert + j * expert_step < task.experts);
    }
  };

  const int warp_row = (warp & 1) * 64, warp_column = (warp >> 1) * 32;
  float sum[4][4][4] = {};
  const auto multiply = [&](int step) {
    const uint32_t a = base + step % kStages * kStageBytes, b = a + kOperandBytes;
#pragma unroll
    for (int kk = 0; kk < kStep / 16; ++kk) {
      uint32_t x[4][4], y[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        airmoe::cuda::load_matrix_x4(
            x[i], a + swizzled<kSegments>(warp_row + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
      }
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        uint32_t both[4];
        airmoe::cuda::load_matrix_x4(
            both, b + swizzled<kSegments>(warp_column + (t + (lane >> 4)) * 8 + (lane & 7),
                                          kk * 2 + (lane >> 3 & 1)));
        y[t][0] = both[0];
        y[t][1] = both[1];
        y[t + 1][0] = both[2];
        y[t + 1][1] = both[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int t = 0; t < 4; ++t) airmoe::cuda::mma_bf16(sum[i][t], x[i], y[t]);
      }
    }
  };

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) copy(step);
    airmoe::cuda::commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    airmoe::cuda::wait_copies<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) copy(step + kStages - 1);
    airmoe::cuda::commit_copies();
    multiply(step);
  }

  float score[8][8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) score[r][j] = sum[r / 2][j / 2][r % 2 * 2 + j % 2];
  }
  const int64_t first_index = blockIdx.y * int64_t{kListTile} + warp_column + (lane & 3) * 8;
  append_scores<kJitter>(
      score, [&](int r) { return warp_row + r / 2 * 16 + r % 2 * 8 + (lane >> 2); }, first_index,
      task, shared);
}

}  // namespace

void append_scores(const ScoreTask<__nv_bfloat16>& task, int64_t row_limit, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((row_limit + kListTile - 1) / kListTile),
                  static_cast<unsigned>((task.indices + kListTile - 1) / kListTile));
  const auto kernel = task.jittered ? scores_bf16_kernel<true> : scores_bf16_kernel<false>;
  constexpr int kBytes = kStages * kStageBytes;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<grid, kListThreads, kBytes, stream>>>(task);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::router::cuda
