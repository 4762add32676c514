#pragma once
// Sums of columns that the warps of a block gathered in registers, to one row of partial sums per
// block. Device code only.

#include "scheduler/cuda/src/row_chunks.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {

/// to[c] = sum over the block's warps of their sum of column c, warps in order. All threads call.
/// `shared`: kWarpsPerBlock * kChunk floats.
template <int kChunks>
__device__ void store_block_sums(const float (&sum)[kChunks][8], float* shared, int64_t dim,
                                 float* to) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    __syncthreads();
    store8(shared + (warp * kWarp + lane) * 8, sum[c]);
    __syncthreads();
    const int64_t column = c * kChunk + threadIdx.x;
    if (column < dim) {
      float total = shared[threadIdx.x];
#pragma unroll
      for (int w = 1; w < kWarpsPerBlock; ++w) total += shared[w * kChunk + threadIdx.x];
      to[column] = total;
    }
  }
}

}  // namespace airmoe::scheduler::cuda
