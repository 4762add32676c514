#pragma once
// Tiles of heads in shared memory for the bf16 kernels: asynchronous loads, matrix fragments,
// stores of results. A tile has kDim columns, of which head_dim are real and the rest zero. All
// kernels have kThreads threads; each warp owns kTiles * 16 consecutive rows of the block's tile.

#include <cstdint>

#include "comm/base/cuda/mma.cuh"
#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda::attention {

using airmoe::cuda::load_matrix_x4;
using airmoe::cuda::load_matrix_x4_transposed;
using airmoe::cuda::mma_bf16;
using airmoe::cuda::pack_bf16;
using airmoe::cuda::shared_address;

using Bf16 = __nv_bfloat16;

inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * 32;

/// 2^x in one instruction, 2 ulp; subnormal results are zero.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// Byte offset of 8 elements of a row: as airmoe::cuda::swizzled, and for rows of less than 128
/// bytes the same on lines of several rows.
template <int kDim>
__device__ __forceinline__ uint32_t tile_offset(uint32_t row, uint32_t segment) {
  constexpr uint32_t kSegments = kDim / 8;
  if constexpr (kSegments >= 8) {
    return airmoe::cuda::swizzled<kSegments>(row, segment);
  } else {
    constexpr uint32_t kRows = 8 / kSegments;
    const uint32_t line = row / kRows;
    const uint32_t slot = row % kRows * kSegments + segment;
    return (line * 8 + (slot ^ (line & 7))) * 16;
  }
}

/// Starts copying kRows rows; rows from `valid` on are zero.
template <int kDim, int kRows>
__device__ __forceinline__ void load_tile(uint32_t tile, const Bf16* from, int64_t ld, int valid,
                                          int head_dim) {
  constexpr int kSegments = kDim / 8;
  constexpr int kStep = kThreads / kSegments;
  const int segment = threadIdx.x % kSegments;
  const bool real = segment * 8 < head_dim;
#pragma unroll
  for (int i = 0; i < (kRows + kStep - 1) / kStep; ++i) {
    const int row = static_cast<int>(threadIdx.x) / kSegments + i * kStep;
    if (kRows % kStep != 0 && row >= kRows) break;
    const bool copies = real && row < valid;
    airmoe::cuda::copy_async_16(tile + tile_offset<kDim>(row, segment),
                                copies ? from + row * ld + segment * 8 : from, copies);
  }
}

/// As copy_async_16, for a row's two terms.
__device__ __forceinline__ void copy_async_8(uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}

/// A [16, 16]: rows from `row`, columns 16 * step.. of a tile.
template <int kDim>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int step) {
  const int lane = threadIdx.x % 32;
  load_matrix_x4(a, tile + tile_offset<kDim>(row + lane % 16, 2 * step + lane / 16));
}

/// Two B [16, 8] of a product with the transposed tile: n = rows from `row`, k = columns 16 *
/// step..
template <int kDim>
__device__ __forceinline__ void load_b_of_rows(uint32_t (&b)[2][2], uint32_t tile, int row,
                                               int step) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  load_matrix_x4(r,
                 tile + tile_offset<kDim>(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

/// Two B [16, 8] of a product with the tile itself: k = rows from `row`, n = columns 16 * step..
template <int kDim>
__device__ __forceinline__ void load_b_of_columns(uint32_t (&b)[2][2], uint32_t tile, int row,
                                                  int step) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  load_matrix_x4_transposed(r, tile + tile_offset<kDim>(row + lane % 16, 2 * step + lane / 16));
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

/// The sums of two neighbouring C [16, 8] as an A [16, 16].
__device__ __forceinline__ void as_a(uint32_t (&a)[4], const float (&left)[4],
                                     const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

/// sums [kTiles * 16, kDim] += A B, where A has 32 columns that are the rows from `row` of the
/// tile.
template <int kDim, int kTiles>
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][kDim / 8][4],
                                              const uint32_t (&a)[kTiles][2][4], uint32_t tile,
                                              int row) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[2][2];
      load_b_of_columns<kDim>(b, tile, row + 16 * k, n);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma_bf16(sums[m][2 * n], a[m][k], b[0]);
        mma_bf16(sums[m][2 * n + 1], a[m][k], b[1]);
      }
    }
  }
}

/// A warp's own rows in registers where they fit, else read from shared memory at each use.
template <int kDim, int kTiles, bool kKept>
struct OwnRows {
  uint32_t kept[kKept ? kTiles : 1][kKept ? kDim / 16 : 1][4];
  uint32_t tile;
  int row;

  __device__ __forceinline__ void load(uint32_t tile_, int row_) {
    tile = tile_, row = row_;
    if constexpr (kKept) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int k = 0; k < kDim / 16; ++k) load_a<kDim>(kept[m][k], tile, row + 16 * m, k);
      }
    }
  }
  /// products [kTiles * 16, 8 * kColumns] = own rows times the transposed rows from `other_row`.
  template <int kColumns>
  __device__ __forceinline__ void multiply(float (&products)[kTiles][kColumns][4], uint32_t other,
                                           int other_row) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) products[m][n][i] = 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t read[kTiles][4];
      if constexpr (!kKept) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) load_a<kDim>(read[m], tile, row + 16 * m, k);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 2; ++n) {
        uint32_t b[2][2];
        load_b_of_rows<kDim>(b, other, other_row + 16 * n, k);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          if constexpr (kKept) {
            mma_bf16(products[m][2 * n], kept[m][k], b[0]);
            mma_bf16(products[m][2 * n + 1], kept[m][k], b[1]);
          } else {
            mma_bf16(products[m][2 * n], read[m], b[0]);
            mma_bf16(products[m][2 * n + 1], read[m], b[1]);
          }
        }
      }
    }
  }
};

/// Writes a warp's sums, rounded, through its own rows of a tile, which nobody else reads: rows
/// below `valid` of the block's tile that starts at `to`.
template <int kDim, int kTiles>
__device__ __forceinline__ void store_rows(const float (&sums)[kTiles][kDim / 8][4], float factor,
                                           unsigned char* tile, int row, Bf16* to, int64_t ld,
                                           int valid, int head_dim) {
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t offset = tile_offset<kDim>(row + 16 * m + 8 * half + group, n) + 4 * quad;
        *reinterpret_cast<uint32_t*>(tile + offset) =
            pack_bf16(factor * sums[m][n][2 * half], factor * sums[m][n][2 * half + 1]);
      }
    }
  }
  __syncwarp();
  constexpr int kSegments = kDim / 8;
#pragma unroll
  for (int i = lane; i < kTiles * 16 * kSegments; i += 32) {
    const int r = row + i / kSegments, segment = i % kSegments;
    if (r < valid && segment * 8 < head_dim) {
      *reinterpret_cast<uint4*>(to + r * ld + segment * 8) =
          *reinterpret_cast<const uint4*>(tile + tile_offset<kDim>(r, segment));
    }
  }
}

}  // namespace airmoe::scheduler::cuda::attention
