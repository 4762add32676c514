#pragma once
// Scores on ordinary arithmetic units, with the rounding of comm/base/panel.hpp: each is one chain
// of fused multiply-adds over k ascending that starts at zero. A block of 128 threads scores 32
// tokens against 128 rows of a table.

#include <cstdint>

#include <cuda_bf16.h>

#include "comm/base/cuda/mma.cuh"

namespace airmoe::router::cuda {

inline constexpr int kExactTokens = 32;
inline constexpr int kExactRows = 128;
inline constexpr int kExactThreads = 128;
inline constexpr int kExactChain = 32;  // elements of k in shared memory at once

/// Shared memory of exact_scores().
template <class T>
struct ExactStage {
  /// 16 bytes more than a chunk, so that equal k of eight rows lie in different banks.
  static constexpr int kStride = kExactChain + 16 / sizeof(T);
  alignas(16) T element[2][kExactTokens + kExactRows][kStride];
  int32_t row[kExactTokens + kExactRows];  ///< of `hidden`, then of the table; -1: zeros
};

__device__ __forceinline__ float4 four_floats(const float* x) {
  return *reinterpret_cast<const float4*>(x);
}
__device__ __forceinline__ float4 four_floats(const __nv_bfloat16* x) {
  const uint2 v = *reinterpret_cast<const uint2*>(x);
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u),
                     __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xFFFF0000u));
}

/// score[i][j] = <hidden(row[8 w + i]), table(row[32 + lane + 32 j])> for warp w.
/// All threads of the block; stage.row must have been written, with a barrier behind it.
template <class T>
__device__ __forceinline__ void exact_scores(ExactStage<T>& stage, const T* hidden, const T* table,
                                             int d, float (&score)[8][4]) {
  constexpr int kSegment = 16 / static_cast<int>(sizeof(T));
  constexpr int kSegments = kExactChain / kSegment;
  constexpr int kRowsAtOnce = kExactThreads / kSegments;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int segment = static_cast<int>(threadIdx.x) % kSegments;
  const int first_row = static_cast<int>(threadIdx.x) / kSegments;

  const auto fetch = [&](int buffer, int k) {
    const int at = k + segment * kSegment;
#pragma unroll
    for (int r = first_row; r < kExactTokens + kExactRows; r += kRowsAtOnce) {
      const int32_t row = stage.row[r];
      const T* source = (r < kExactTokens ? hidden : table) + static_cast<int64_t>(row) * d + at;
      const bool valid = row >= 0 && at < d;
      airmoe::cuda::copy_async_16(
          airmoe::cuda::shared_address(&stage.element[buffer][r][segment * kSegment]),
          valid ? source : hidden, valid);
    }
    airmoe::cuda::commit_copies();
  };

#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) score[i][j] = 0.0f;
  }
  const bool empty = stage.row[8 * warp] < 0;  // tokens fill a tile from its start
  const int chunks = (d + kExactChain - 1) / kExactChain;
  fetch(0, 0);
  for (int c = 0; c < chunks; ++c) {
    if (c + 1 < chunks) {
      fetch((c + 1) & 1, (c + 1) * kExactChain);
      airmoe::cuda::wait_copies<1>();
    } else {
      airmoe::cuda::wait_copies<0>();
    }
    __syncthreads();
    const auto& element = stage.element[c & 1];
    if (!empty) {
#pragma unroll 2
      for (int k = 0; k < kExactChain; k += 4) {
        float4 w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          w[j] = four_floats(&element[kExactTokens + lane + 32 * j][k]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 x = four_floats(&element[8 * warp + i][k]);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            score[i][j] = fmaf(w[j].x, x.x, score[i][j]);
            score[i][j] = fmaf(w[j].y, x.y, score[i][j]);
            score[i][j] = fmaf(w[j].z, x.z, score[i][j]);
            score[i][j] = fmaf(w[j].w, x.w, score[i][j]);
          }
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace airmoe::router::cuda
