#pragma once
// What both score kernels do with a tile of 128 codewords x 128 experts: jitter where it can
// matter, then append what reaches the codeword's threshold. Every thread holds eight rows of eight
// neighbouring experts, which share one block of draws.

#include <cstdint>

#include "comm/base/cuda/jitter.cuh"
#include "comm/base/cuda/philox.cuh"
#include "router/cuda/src/list_kernels.hpp"

namespace airmoe::router::cuda {

inline constexpr int kListTile = 128;  // rows and columns of a tile
inline constexpr int kListThreads = 256;

struct AppendShared {
  float threshold[kListTile], floor[kListTile];
  int32_t codeword[kListTile], count[kListTile], base[kListTile];
};

/// Rows first_row .. of the task. A barrier must follow.
template <class T>
__device__ __forceinline__ void start_append(const ScoreTask<T>& task, int first_row, int rows,
                                             AppendShared& shared) {
  const int r = threadIdx.x;
  if (r >= kListTile) return;
  const int row = first_row + r;
  const int codeword = row < rows ? task.codeword[row] : -1;
  float threshold = __int_as_float(0x7FC00000);  // nothing reaches NaN
  if (codeword >= 0) {
    threshold = task.threshold != nullptr ? task.threshold[codeword] : -INFINITY;
  }
  shared.threshold[r] = threshold;
  // Below this no draw can lift a score to the threshold; as router/src/local_top.cpp.
  shared.floor[r] =
      threshold - task.jitter.stddev * kJitterBound * 1.001f - fabsf(threshold) * 1e-6f;
  shared.codeword[r] = codeword;
  shared.count[r] = 0;
}

/// Without a branch: few scores of a thread are candidates, but some thread of a warp always has
/// one.
__device__ __forceinline__ void store_if(uint32_t condition, Candidate* to, float score,
                                         int32_t id) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.u32 p, %0, 0;\n@p st.global.v2.b32 [%1], {%2, %3};\n}\n" ::"r"(
          condition),
      "l"(to), "r"(__float_as_uint(score)), "r"(id)
      : "memory");
}

/// score[r][j]: row first_row + row_of(r), index first_index + j, where first_index is a multiple
/// of eight. All threads of the block; a barrier must come before the next call.
template <bool kJitter, class T, class RowOf>
__device__ __forceinline__ void append_scores(float (&score)[8][8], const RowOf& row_of,
                                              int first_row, int64_t first_index,
                                              const ScoreTask<T>& task, AppendShared& shared) {
  const int64_t first_expert = first_index * task.stride + task.offset;
  const int64_t left = min(task.experts - first_expert, task.indices - first_index);
  const uint32_t usable = left >= 8 ? 0xFFu : left <= 0 ? 0u : (1u << left) - 1;
  uint32_t appended[8];  // which of a row's eight, and from bit 8 their place among the tile's
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int row = row_of(r);
    const float threshold = shared.threshold[row];
    const float floor = kJitter ? shared.floor[row] : threshold;
    uint32_t hits = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) hits |= (score[r][j] >= floor ? 1u : 0u) << j;
    hits &= usable;
    if (kJitter && hits != 0) {
      const uint4 block = airmoe::cuda::philox(static_cast<uint32_t>(first_expert >> 3),
                                               static_cast<uint32_t>(shared.codeword[row]), 0, 0,
                                               task.jitter.key0, task.jitter.key1);
      const uint32_t words[4] = {block.x, block.y, block.z, block.w};
      float noise[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // eight loads under way at once; the others' go to one place
        const uint32_t draw = words[j / 2] >> (16 * (j % 2)) & 0xFFFFu;
        if ((draw >> 15) != 0 && score[r][j] < threshold) hits &= ~(1u << j);  // falls further
        noise[j] = airmoe::cuda::jitter_of_draw(task.jitter, (hits >> j & 1) != 0 ? draw : 0);
      }
      uint32_t reached = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        score[r][j] = __fadd_rn(score[r][j], noise[j]);
        reached |= (score[r][j] >= threshold ? 1u : 0u) << j;
      }
      hits &= reached;
    }
    appended[r] = hits;
    if (hits != 0) {
      appended[r] |= static_cast<uint32_t>(atomicAdd(shared.count + row, __popc(hits))) << 8;
    }
  }
  __syncthreads();
  if (threadIdx.x < kListTile) {
    const int count = shared.count[threadIdx.x];
    if (count > 0) {
      shared.base[threadIdx.x] = atomicAdd(task.count + first_row + threadIdx.x, count);
      shared.count[threadIdx.x] = 0;
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    uint32_t hits = appended[r] & 0xFFu;
    if (hits == 0) continue;
    const int row = row_of(r);
    const int slot = shared.base[row] + static_cast<int>(appended[r] >> 8);
    if (slot + __popc(hits) > static_cast<int>(task.capacity)) hits = 0;  // the row is lost anyway
    Candidate* to = task.candidates + int64_t{first_row + row} * task.row_elements + slot;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t hit = hits >> j & 1;
      store_if(hit, to, score[r][j], static_cast<int32_t>(first_expert) + j);
      to += hit;
    }
  }
}

}  // namespace airmoe::router::cuda
