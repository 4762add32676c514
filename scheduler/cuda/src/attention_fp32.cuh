#pragma once
// Tiles of heads for the fp32 kernels: plain fused multiply-adds on shared memory. 16 x 16 threads;
// a thread owns rows y + 16 i and columns x + 16 j of every product. Rows are kDim + 1 apart.

#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda::attention::fp32 {

inline constexpr int kSide = 16;
inline constexpr int kThreads = kSide * kSide;

/// Rows of a tile: what fits in 163 KB of shared memory.
template <int kDim>
constexpr int kRows = kDim <= 64 ? 64 : 32;
/// Elements of a tile of rows, and of one of probabilities.
template <int kDim>
constexpr int kTile = kRows<kDim>*(kDim + 1);
template <int kDim>
constexpr int kSquare = kRows<kDim>*(kRows<kDim> + 1);

/// Rows from `valid` on and columns from head_dim on are zero.
template <int kDim>
__device__ void load_tile(float* tile, const float* from, int64_t ld, int valid, int head_dim) {
  for (int i = threadIdx.x; i < kRows<kDim> * kDim; i += kThreads) {
    const int row = i / kDim, column = i % kDim;
    tile[row * (kDim + 1) + column] =
        row < valid && column < head_dim ? from[row * ld + column] : 0.0f;
  }
}

/// One operand of a product: element (index, k) is at data[index * by_index + k * by_k].
struct Operand {
  const float* data;
  int by_index, by_k;
};

/// sums(i, j) += sum over k < kLength of a(y + 16 i, k) * b(x + 16 j, k), k ascending.
template <int kLength, int kM, int kN>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN], Operand a, Operand b) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll 4
  for (int k = 0; k < kLength; ++k) {
    float left[kM], right[kN];
#pragma unroll
    for (int i = 0; i < kM; ++i) left[i] = a.data[(y + kSide * i) * a.by_index + k * a.by_k];
#pragma unroll
    for (int j = 0; j < kN; ++j) right[j] = b.data[(x + kSide * j) * b.by_index + k * b.by_k];
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
    }
  }
}

/// A tile's rows as an operand: summed over columns, or (transposed) over rows.
template <int kDim>
__device__ __forceinline__ Operand rows_of(const float* tile) {
  return {tile, kDim + 1, 1};
}
template <int kDim>
__device__ __forceinline__ Operand columns_of(const float* tile) {
  return {tile, 1, kDim + 1};
}

/// Writes factor * sums to rows below `valid`.
template <int kM, int kN>
__device__ void store(const float (&sums)[kM][kN], float factor, float* to, int64_t ld, int valid,
                      int head_dim) {
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const int row = y + kSide * i, column = x + kSide * j;
      if (row < valid && column < head_dim) to[row * ld + column] = factor * sums[i][j];
    }
  }
}

}  // namespace airmoe::scheduler::cuda::attention::fp32
