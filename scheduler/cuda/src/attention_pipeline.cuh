#pragma once
// What the kernels of Hopper share: tiles of heads that the copy engine brings into a ring of
// stages and takes away, and the products of such tiles. A tile of a head has kDim columns in parts
// of up to 64, one after another; a part has dense rows in the swizzle of their size.

#include <cstdint>

#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/tensor_map.hpp"
#include "comm/base/cuda/tma.cuh"
#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda::attention {

inline constexpr int kGroupThreads = 128;  // of a warp group
/// Rows of one copy, and its columns: as many as 128 bytes hold, or half of that for small heads.
inline constexpr int kBoxRows = 64;
template <int kDim>
inline constexpr int kBoxColumns = kDim < 64 ? kDim : 64;

/// A matrix [sequences * context, heads * head_dim], rows `ld` elements apart, for copies of boxes
/// of (columns of a head, head, row of a sequence, sequence): zeros where there is none. Host.
template <int kDim>
CUtensorMap map_of_heads(const __nv_bfloat16* data, int64_t ld, int64_t sequences, int64_t context,
                         int64_t heads, int64_t head_dim) {
  constexpr int64_t kBytes = sizeof(__nv_bfloat16);
  return airmoe::cuda::describe_bf16(data, {{head_dim, kBytes, kBoxColumns<kDim>},
                                            {heads, head_dim * kBytes, 1},
                                            {context, ld * kBytes, kBoxRows},
                                            {sequences, context * ld * kBytes, 1}});
}

#if defined(AIRMOE_HAS_WGMMA)

using airmoe::cuda::Ring;

/// This thread's warp group, in a way that shows the compiler that a warp agrees on it.
__device__ __forceinline__ int group_of_thread() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
}
/// `threads` threads meet at one of the block's barriers, or pass it without waiting.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

/// Brings a box of a map_of_heads; its bytes arrive at `barrier`.
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                         int column, int head, int row, int sequence) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(head), "r"(row), "r"(sequence)
      : "memory");
}
/// Takes a box away; what is outside the matrix is dropped.
__device__ __forceinline__ void store_box(const CUtensorMap& map, uint32_t from, int column,
                                          int head, int row, int sequence) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];\n" ::"l"(
          &map),
      "r"(from), "r"(column), "r"(head), "r"(row), "r"(sequence)
      : "memory");
}
/// Closes this thread's stores, and waits until they have left shared memory.
__device__ __forceinline__ void finish_stores() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

#endif

/// Tiles of kRows rows of a head.
template <int kDim, int kRows>
struct Tile {
  static constexpr int kPartColumns = kBoxColumns<kDim>;
  static constexpr int kParts = kDim / kPartColumns;
  static constexpr int kRowBytes = kPartColumns * 2;  // of a part: the swizzle's size
  static constexpr int kPartBytes = kRows * kRowBytes;
  static constexpr int kBytes = kParts * kPartBytes;

#if defined(AIRMOE_HAS_WGMMA)
  /// Brings rows from `row` of a sequence on; kBytes will arrive.
  __device__ static void load(uint32_t tile, const CUtensorMap& map, uint32_t barrier, int head,
                              int row, int sequence) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int r = 0; r < kRows; r += kBoxRows) {
        load_box(tile + part * kPartBytes + r * kRowBytes, map, barrier, part * kPartColumns, head,
                 row + r, sequence);
      }
    }
  }
  /// Takes kBoxRows rows away that begin at row `own` of the tile.
  __device__ static void store(const CUtensorMap& map, uint32_t tile, int own, int head, int row,
                               int sequence) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      store_box(map, tile + part * kPartBytes + own * kRowBytes, part * kPartColumns, head, row,
                sequence);
    }
  }
#endif

  /// For wgmma: what begins at row `row`, column 16 * step.
  __device__ static uint64_t describe(uint32_t tile, int row, int step) {
    constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : 2} << 62;
    constexpr uint64_t kStride = uint64_t{8 * kRowBytes >> 4} << 32;  // eight rows
    constexpr uint64_t kLeading = uint64_t{kPartBytes >> 4} << 16;    // the next part
    constexpr int kStepsPerPart = kPartColumns / 16;
    return (kSwizzle | kStride | kLeading | ((tile & 0x3ffff) >> 4)) +
           static_cast<uint64_t>(
               (row * kRowBytes + step / kStepsPerPart * kPartBytes + step % kStepsPerPart * 32) >>
               4);
  }
  /// Byte offset of 16 bytes: elements [8 * segment, + 8) of a row.
  __device__ static uint32_t offset(uint32_t row, uint32_t segment) {
    constexpr uint32_t kSegments = kPartColumns / 8;
    const uint32_t in_part = segment % kSegments;
    const uint32_t swizzled = kSegments == 8 ? in_part ^ (row & 7) : in_part ^ (row / 2 & 3);
    return segment / kSegments * kPartBytes + row * kRowBytes + swizzled * 16;
  }
};

#if defined(AIRMOE_HAS_WGMMA)

/// products [64, kOtherRows] = rows [row, row + 64) of `own` times the transposed rows of `other`,
/// begun, not closed.
template <int kDim, int kOwnRows, int kOtherRows>
__device__ __forceinline__ void multiply_tiles(float (&products)[kOtherRows / 8][4], uint32_t own,
                                               int row, uint32_t other) {
  using Own = Tile<kDim, kOwnRows>;
  using Other = Tile<kDim, kOtherRows>;
  airmoe::cuda::multiply_async<false, false>(products, Own::describe(own, row, 0),
                                             Other::describe(other, 0, 0));
#pragma unroll
  for (int i = 1; i < kDim / 16; ++i) {
    airmoe::cuda::multiply_async<false, true>(products, Own::describe(own, row, i),
                                              Other::describe(other, 0, i));
  }
}
/// The same with the own rows in registers.
template <int kDim, int kOtherRows>
__device__ __forceinline__ void multiply_tiles(float (&products)[kOtherRows / 8][4],
                                               const uint32_t (&own)[kDim / 16][4],
                                               uint32_t other) {
  using Other = Tile<kDim, kOtherRows>;
  airmoe::cuda::multiply_async<false, false>(products, own[0], Other::describe(other, 0, 0));
#pragma unroll
  for (int i = 1; i < kDim / 16; ++i) {
    airmoe::cuda::multiply_async<false, true>(products, own[i], Other::describe(other, 0, i));
  }
}
/// Rows [row, row + 64) of a tile to a warp group's registers.
template <int kDim, int kRows>
__device__ __forceinline__ void load_own(uint32_t (&own)[kDim / 16][4], uint32_t tile, int row) {
  const int lane = threadIdx.x % 32;
  row += threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    airmoe::cuda::load_matrix_x4(own[i], tile + Tile<kDim, kRows>::offset(row, 2 * i + lane / 16));
  }
}
/// sums [64, kDim] += weights [64, kRows] times the rows of a tile, begun, not closed.
template <int kDim, int kRows>
__device__ __forceinline__ void add_rows(float (&sums)[kDim / 8][4],
                                         const uint32_t (&weights)[kRows / 16][4], uint32_t tile) {
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
    airmoe::cuda::multiply_async<true, true>(sums, weights[i],
                                             Tile<kDim, kRows>::describe(tile, 16 * i, 0));
  }
}

/// A warp group's sums, times `factor` and rounded, into rows [own, own + 64) of a tile, for
/// Tile::store by one thread. Other lanes of the warp may just have read these rows.
template <int kDim, int kRows>
__device__ __forceinline__ void put_rows(const float (&sums)[kDim / 8][4], float factor,
                                         unsigned char* tile, int own) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int row = own + threadIdx.x / 32 % 4 * 16 + group;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t offset = Tile<kDim, kRows>::offset(row + 8 * half, n) + 4 * quad;
      *reinterpret_cast<uint32_t*>(tile + offset) =
          airmoe::cuda::pack_bf16(factor * sums[n][2 * half], factor * sums[n][2 * half + 1]);
    }
  }
  airmoe::cuda::publish_copies();
}

#endif

}  // namespace airmoe::scheduler::cuda::attention
