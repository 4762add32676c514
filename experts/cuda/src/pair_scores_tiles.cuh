#pragma once
// The tensor-core kernel of pair_scores.cuh. A block keeps the tokens of a tile in shared memory
// and streams its candidates' rows past them, gathered slab by slab of 64 columns.

#include <cstdint>

#include <cuda_bf16.h>

#include "comm/base/cuda/divider.hpp"
#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/pair_tiles.hpp"

namespace airmoe::experts::cuda {

using airmoe::cuda::Divider;
using airmoe::cuda::PairTiles;

struct ScoresShape {
  static constexpr int kThreads = 256;
  static constexpr int kStages = 3;
  static constexpr int kRows = airmoe::cuda::kTileChunk;  // candidate rows per chunk
  static constexpr int kColumns = 64;                     // of one slab
  static constexpr int kStageBytes = kRows * kColumns * 2;
  static constexpr int kTokenSlabBytes = airmoe::cuda::kTileTokens * kColumns * 2;

  static constexpr int64_t slabs(int64_t d) { return (d + kColumns - 1) / kColumns; }
  /// Room for the selected products of 16 tokens and a warp's 16 candidates.
  static constexpr int kSlots = 17;  // one more than needed: fewer bank conflicts
  static constexpr int kWarpSlots = 16 * kSlots;
  static constexpr int64_t shared_bytes(int64_t d) {
    return slabs(d) * kTokenSlabBytes + kStages * kStageBytes +
           kThreads / 32 * kWarpSlots * static_cast<int64_t>(sizeof(float));
  }
};

/// Block = (tile, split of its chunks). Warp w has rows 16 w .. 16 w + 15 of a chunk.
/// @tparam kOneUnit  units is 1
template <bool kOneUnit, class Epilogue>
__global__ void __launch_bounds__(ScoresShape::kThreads, 3)
    pair_scores_tiles_kernel(const __grid_constant__ PairTiles tiles,
                             const __nv_bfloat16* __restrict__ x, int d,
                             const __nv_bfloat16* __restrict__ table, const Divider units,
                             int splits, const __grid_constant__ Epilogue epilogue) {
  using Shape = ScoresShape;
  using namespace airmoe::cuda;
  const int tile = blockIdx.x / splits, split = static_cast<int>(blockIdx.x) % splits;
  if (tile >= *tiles.tokens.tiles) return;
  const int used = tiles.used[tile];
  const int chunks = ((kOneUnit ? used : used * units.divisor()) + Shape::kRows - 1) / Shape::kRows;
  const int first_chunk = chunks * split / splits;
  const int slabs = static_cast<int>(Shape::slabs(d));
  const int total = (chunks * (split + 1) / splits - first_chunk) * slabs;
  if (total == 0) return;

  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t token_slabs = shared_address(shared);
  const uint32_t ring = token_slabs + slabs * Shape::kTokenSlabBytes;
  const int begin = tiles.tokens.tile_begin[tile];
  const int count = tiles.tokens.tile_end[tile] - begin;
  const int active = static_cast<int>(tiles.active);
  const int64_t at = tile * tiles.width;
  const int32_t* const rows = tiles.row + at;
  const uint32_t* const mask = tiles.mask + at;
  const uint16_t* const first = tiles.first + at;

  // Copies: a thread has one 16-byte segment of every 32nd row. Rows behind the last used candidate
  // are copies of the table's first: their products are not read.
  const int copy_segment = threadIdx.x % 8, copy_row = threadIdx.x / 8;
  const uint32_t copy_to = swizzled<8>(copy_row, copy_segment);  // 32 rows on: 32 x 128 bytes on
  const auto table_rows = [&](int chunk, int(&id)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = chunk * Shape::kRows + copy_row + 32 * i;
      id[i] = 0;
      if (chunk >= chunks) continue;
      if constexpr (kOneUnit) {
        id[i] = max(rows[r], 0);
      } else {
        const int candidate = units.divide(r);
        if (candidate < used) id[i] = rows[candidate] * units.divisor() + units.remainder(r);
      }
    }
  };
  const __nv_bfloat16* source[4];  // of the next copy
  int next_id[4];
  int copied = 0, copy_slab = 0, copy_chunk = first_chunk;
  uint32_t copy_stage = ring + copy_to;
  const auto start_chunk = [&](const int(&id)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      source[i] = table + static_cast<int64_t>(id[i]) * d + copy_segment * 8;
    }
  };
  const auto copy = [&]() {
    if (copied < total) {
      const bool valid = copy_slab * Shape::kColumns + copy_segment * 8 < d;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        copy_async_16(copy_stage + i * 32 * 128, source[i], valid);
        source[i] += Shape::kColumns;
      }
      copy_stage += Shape::kStageBytes;
      if (copy_stage == ring + copy_to + Shape::kStages * Shape::kStageBytes) {
        copy_stage = ring + copy_to;
      }
      ++copied;
      if (++copy_slab == slabs) {
        copy_slab = 0;
        start_chunk(next_id);
        table_rows(++copy_chunk + 1, next_id);
      }
    }
    commit_copies();
  };

  table_rows(first_chunk, next_id);
  start_chunk(next_id);
  table_rows(first_chunk + 1, next_id);
  {
    const bool valid_token = copy_row < count;
    const __nv_bfloat16* from =
        x + static_cast<int64_t>(valid_token ? tiles.tokens.token[begin + copy_row] : 0) * d;
    for (int slab = 0; slab < slabs; ++slab) {
      const int column = slab * Shape::kColumns + copy_segment * 8;
      const bool valid = valid_token && column < d;
      copy_async_16(token_slabs + slab * Shape::kTokenSlabBytes + copy_to,
                    valid ? from + column : x, valid);
    }
  }
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) copy();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int halves = count > 16 ? 2 : 1;
  // Addresses of the lane's rows of the first token slab and the first stage.
  const uint32_t left_lane = token_slabs + swizzled<8>(lane % 16, lane / 16);
  const uint32_t right_lane =
      ring + swizzled<8>(warp * 16 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const int shift = warp % 2 * 16;  // the warp's candidates in their word
  float* const slots = reinterpret_cast<float*>(shared + slabs * Shape::kTokenSlabBytes +
                                                Shape::kStages * Shape::kStageBytes) +
                       warp * Shape::kWarpSlots;
  const auto emit = [&](int t, int pair_of_token, int unit, float value) {
    epilogue(static_cast<int64_t>(begin + t) * active + pair_of_token, unit, value);
  };
  float sum[2][2][4] = {};
  uint32_t word[2][2] = {};  // selections of the thread's tokens among the chunk's candidates
  int before[2][2] = {};
  int slab = 0, chunk = first_chunk, read_stage = 0;
  for (int i = 0; i < total; ++i) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();
    copy();
    if (kOneUnit && slab == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int t = half * 16 + upper * 8 + lane / 4;
          const int m = (chunk * 4 + warp / 2) * 32 + t;
          word[half][upper] = t < count ? mask[m] : 0;
          before[half][upper] = first[m];
        }
      }
    }
    // Columns k .. k + 15 lie 2 k bytes on, which with the swizzle is an exclusive or.
    const uint32_t left = left_lane + slab * Shape::kTokenSlabBytes;
    const uint32_t right = right_lane + read_stage * Shape::kStageBytes;
    read_stage = read_stage + 1 == Shape::kStages ? 0 : read_stage + 1;
#pragma unroll
    for (int k = 0; k < Shape::kColumns; k += 16) {
      uint32_t b[4];
      load_matrix_x4(b, right ^ (2 * k));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half >= halves) break;
        uint32_t a[4];
        load_matrix_x4(a, (left ^ (2 * k)) + half * 16 * 128);
        mma_bf16(sum[half][0], a, b0);
        mma_bf16(sum[half][1], a, b1);
      }
    }
    if (++slab < slabs) continue;

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half >= halves) break;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int j = e / 4, upper = e / 2 % 2;
        const float value = sum[half][j][e % 4];
        const int column = j * 8 + lane % 4 * 2 + e % 2;  // of the warp's 16
        if constexpr (kOneUnit) {
          const uint32_t mine = word[half][upper] >> shift & 0xffff, bit = 1u << column;
          if (mine & bit)
            slots[(upper * 8 + lane / 4) * Shape::kSlots + __popc(mine & (bit - 1))] = value;
        } else {
          const int t = half * 16 + upper * 8 + lane / 4;
          const int r = chunk * Shape::kRows + warp * 16 + column;
          const int candidate = units.divide(r);
          if (t >= count || candidate >= used) continue;
          const int m = candidate / 32 * 32 + t;
          const uint32_t selected = mask[m], bit = 1u << (candidate % 32);
          if (selected & bit) {
            emit(t, first[m] + __popc(selected & (bit - 1)), units.remainder(r), value);
          }
        }
      }
      if constexpr (kOneUnit) {  // the selected ones side by side: four lanes per token
        __syncwarp();
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const uint32_t all = word[half][upper];
          const int selected = __popc(all >> shift & 0xffff);
          const int pair = before[half][upper] + __popc(all & ((1u << shift) - 1));
          const int t = upper * 8 + lane / 4;
          for (int k = lane % 4; k < selected; k += 4) {
            emit(half * 16 + t, pair + k, 0, slots[t * Shape::kSlots + k]);
          }
        }
        __syncwarp();
      }
#pragma unroll
      for (auto& tile_sum : sum[half]) {
#pragma unroll
        for (float& element : tile_sum) element = 0;
      }
    }
    slab = 0;
    ++chunk;
  }
}

}  // namespace airmoe::experts::cuda
