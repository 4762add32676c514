#pragma once
// Scores of tiles of tokens against rows of a table, for rows that are long: every warp streams its
// rows through a ring in shared memory, kPiece bytes of each of 16 rows at a time, so that requests
// name whole lines and device memory is read in larger pieces than score_tile.cuh does. Tokens come
// from the first-level cache; all warps of a block have the same ones at about the same time, but
// no warp waits for another.
//
// Rows are the 16 rows of the instruction, tokens its 8 columns. Every lane takes 16 bytes of a row
// and of a token at a time, as in score_tile.cuh: eight neighbouring elements where the instruction
// wants four pairs apart, in the same order on both sides.

#include <cstdint>

#include "comm/base/cuda/mma.cuh"

namespace airmoe::router::cuda {

/// Rows on their way to one warp.
template <int kPiece, int kStages>
class RowRing {
 public:
  static constexpr int kRows = 16;
  static constexpr int kStageBytes = kRows * kPiece;
  static constexpr int kBytes = kStages * kStageBytes;

  /// @param ring       kBytes of shared memory, 128-byte aligned, of this warp
  /// @param row_bytes  a multiple of 64
  __device__ RowRing(uint32_t ring, const __nv_bfloat16* table, int row_bytes)
      : ring_(ring), table_(reinterpret_cast<const char*>(table)), row_bytes_(row_bytes) {}

  /// Begins to bring the next piece. `next_rows(row)` is called where a group begins: it gives the
  /// lane the row of lane % 16 of the group, or returns false where no group is left.
  template <class NextRows>
  __device__ __forceinline__ void bring(NextRows next_rows) {
    if (at_ == 0) {
      int32_t row = 0;
      more_ = next_rows(row);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) row_[i] = __shfl_sync(~0u, row, i * kRowsPerCopy + mine());
    }
    if (more_) {
      const int lane = static_cast<int>(threadIdx.x) & 31;
      const int segment = lane % kSegments;
      if (at_ + segment * 16 < row_bytes_) {
        const char* from = table_ + at_ + segment * 16;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          const int row = i * kRowsPerCopy + mine();
          airmoe::cuda::copy_async_16(
              ring_ + write_ * kStageBytes + row * kPiece + (segment ^ (row & 1) * 4) * 16,
              from + static_cast<int64_t>(row_[i]) * row_bytes_);
        }
      }
      at_ += kPiece;
      if (at_ >= row_bytes_) at_ = 0;
    }
    airmoe::cuda::commit_copies();
    write_ = write_ + 1 == kStages ? 0 : write_ + 1;
  }

  /// Waits for the oldest piece that was not awaited yet and returns its address; all lanes.
  __device__ __forceinline__ uint32_t await() {
    airmoe::cuda::wait_copies<kStages - 1>();
    __syncwarp();
    const uint32_t stage = ring_ + read_ * kStageBytes;
    read_ = read_ + 1 == kStages ? 0 : read_ + 1;
    return stage;
  }

 private:
  static constexpr int kSegments = kPiece / 16;
  static constexpr int kRowsPerCopy = 32 / kSegments;
  static constexpr int kCopies = kRows / kRowsPerCopy;
  static_assert(kSegments >= 8 && kSegments <= 32);

  __device__ static int mine() {
    return (static_cast<int>(threadIdx.x) & 31) / kSegments;
  }

  uint32_t ring_;
  const char* table_;
  int row_bytes_;
  int at_ = 0;  // byte of the rows that comes next
  bool more_ = false;
  int32_t row_[kCopies];
  int write_ = 0, read_ = 0;
};

/// Loads 16 bytes that stay in the first-level cache. Volatile: stays ahead of its use.
__device__ __forceinline__ uint4 load_kept(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}
__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

/// Adds the products of a piece of 16 rows and the first 8 * kNTiles of 8 * kMost tokens.
/// @param hidden  the tokens, from the piece's element 8 * (lane % 4) of the first one on
/// @param token   of this lane: the index of token lane / 4 of each n-tile
/// @param steps   of 32 elements, at most kPiece / 64
/// @param await   called once when the first tokens are on their way: waits for the rows and gives
///                the address of the piece
template <int kPiece, int kNTiles, int kMost, class Await>
__device__ __forceinline__ void multiply_piece(float (&sum)[kMost][4], const char* hidden,
                                               int row_bytes, const int32_t (&token)[kMost],
                                               int steps, Await await) {
  constexpr int kSteps = kPiece / 64;
  constexpr int kAtOnce = kNTiles <= 2   ? kSteps
                          : kNTiles <= 4 ? 2
                                         : 1;  // steps whose tokens are in registers
  const int lane = static_cast<int>(threadIdx.x) & 31, row = lane >> 2, quad = lane & 3;
  uint32_t rows = 0;
#pragma unroll
  for (int from = 0; from < kSteps; from += kAtOnce) {
    if (from >= steps) break;
    uint4 b[kAtOnce][kNTiles];
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        b[s][j] = make_uint4(0, 0, 0, 0);
        if (from + s < steps)
          b[s][j] =
              load_kept(hidden + static_cast<int64_t>(token[j]) * row_bytes + 64 * (from + s));
      }
    }
    if (from == 0) rows = await() + row * kPiece;
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (from + s >= steps) break;
      const int segment = (4 * (from + s) + quad) ^ (row & 1) * 4;
      const uint4 low = load_shared(rows + segment * 16);
      const uint4 high = load_shared(rows + 8 * kPiece + segment * 16);
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
      const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        airmoe::cuda::mma_bf16(sum[j], a0, {b[s][j].x, b[s][j].y});
      }
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        airmoe::cuda::mma_bf16(sum[j], a1, {b[s][j].z, b[s][j].w});
      }
    }
  }
}

}  // namespace airmoe::router::cuda
