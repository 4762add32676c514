#pragma once
// Scores of a tile of tokens against rows of a table, bf16 on tensor cores. The tokens lie in
// shared memory; rows go from the second-level cache straight into registers, because every row is
// used by one warp only.
//
// Every lane loads 16 bytes of a row: eight neighbouring elements where the instruction wants four
// pairs apart. Tokens are read in the same order, and a sum does not care which k is called which.

#include <cstdint>

#include "comm/base/cuda/mma.cuh"
#include "router/cuda/src/norm.cuh"

namespace airmoe::router::cuda {

/// d rounded up to two stages of the pipeline, which read 32 * kSteps elements of a row each.
template <int kSteps>
__host__ __device__ constexpr int64_t padded_dim(int64_t d) {
  return (d + 64 * kSteps - 1) / (64 * kSteps) * (64 * kSteps);
}
/// Bytes from one token to the next: an odd multiple of 64, so that two rows fill all banks.
template <int kSteps>
__host__ __device__ constexpr int64_t token_stride(int64_t d) {
  return padded_dim<kSteps>(d) * 2 + 64;
}

/// Loads 16 bytes past the first-level cache. Volatile: stays where it is, ahead of its use.
__device__ __forceinline__ uint4 load_streamed(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

/// Copies a token to its row in shared memory, zeros up to padded_dim(d), or all zeros where
/// `source` is nullptr. All lanes of a warp. Returns the sum of squares of the lane's elements.
template <int kSteps>
__device__ __forceinline__ float stage_token(const __nv_bfloat16* source, int d, char* row) {
  const int lane = threadIdx.x & 31;
  const int segments = static_cast<int>(padded_dim<kSteps>(d)) / 8;
  float squares = 0.0f;
  for (int s = lane; s < segments; s += 32) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (source != nullptr && s * 8 < d) v = *reinterpret_cast<const uint4*>(source + s * 8);
    *reinterpret_cast<uint4*>(row + s * 16) = v;
    squares = add_squares(squares, v);
  }
  return squares;
}

/// One warp scores groups first_group, + group_step, ... < groups of 8 * kNTiles rows each against
/// 16 * kMTiles tokens. 8 * kNTiles * kSteps registers hold rows that are under way or just came.
/// kWhole: d is a multiple of 64 * kSteps.
/// @param tokens  row 0 of the tokens, token_stride(d) bytes apart
/// @param used    token tiles of 16 that are not empty; the others' sums are zero
/// @param row_of  row_of(group, i) = row of `table` that is row i of the group; i differs by lane,
///                always valid
/// @param ready   called once, before tokens are read: the barrier behind their staging
/// @param done    done(group, sum): sum[m][j] is the fragment C of tokens 16 m.. and rows 8 j..
template <int kMTiles, int kNTiles, int kSteps, bool kWhole, class RowOf, class Ready, class Done>
__device__ __forceinline__ void score_groups(const char* tokens, int used, int d, int first_group,
                                             int group_step, int groups,
                                             const __nv_bfloat16* __restrict__ table, RowOf row_of,
                                             Ready ready, Done done) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int quad = lane & 3;
  const int stride = static_cast<int>(token_stride<kSteps>(d));
  const int padded = static_cast<int>(padded_dim<kSteps>(d));
  const char* mine = tokens + (lane >> 2) * stride + quad * 16;
  table += quad * 8;

  int32_t next[kNTiles];
  const __nv_bfloat16* at[kNTiles];  // of this lane, the next to load
  uint4 b[2][kSteps][kNTiles];
  const auto find = [&](int group) {
    if (group >= groups) return;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) next[j] = row_of(group, 8 * j + (lane >> 2));
  };
  const auto begin = [&] {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) at[j] = table + static_cast<int64_t>(next[j]) * d;
  };
  const auto load = [&](uint4(&out)[kSteps][kNTiles], int k) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      // Behind d the tokens are zero, so any finite elements do.
      const int skip = kWhole || k + 32 * s + quad * 8 < d ? 32 * s : 0 - k - quad * 8;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) out[s][j] = load_streamed(at[j] + skip);
    }
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) at[j] += 32 * kSteps;
  };
  float sum[kMTiles][kNTiles][4];
  const auto multiply = [&](const uint4(&in)[kSteps][kNTiles], int k) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (m > 0 && m >= used) break;
        const char* at = mine + 16 * m * stride + (k + 32 * s) * 2;
        const uint4 low = *reinterpret_cast<const uint4*>(at);
        const uint4 high = *reinterpret_cast<const uint4*>(at + 8 * stride);
        const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
        const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
          airmoe::cuda::mma_bf16(sum[m][j], a0, {in[s][j].x, in[s][j].y});
        }
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
          airmoe::cuda::mma_bf16(sum[m][j], a1, {in[s][j].z, in[s][j].w});
        }
      }
    }
  };

  find(first_group);
  if (first_group < groups) {
    begin();
    load(b[0], 0);
  }
  ready();
  for (int group = first_group; group < groups; group += group_step) {
    find(group + group_step);
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][j][i] = 0.0f;
      }
    }
    for (int k = 0; k < padded; k += 64 * kSteps) {
      load(b[1], k + 32 * kSteps);
      multiply(b[0], k);
      if (k + 64 * kSteps < padded) {
        load(b[0], k + 64 * kSteps);
      } else if (group + group_step < groups) {
        begin();
        load(b[0], 0);
      }
      multiply(b[1], k + 32 * kSteps);
    }
    done(group, sum);
  }
}

}  // namespace airmoe::router::cuda
