#pragma once
// The expert-centric tensor-core kernel of pair_scores.cuh. A block keeps the tokens of 64 sorted
// pairs in shared memory and streams the rows of their experts past them.

#include <algorithm>
#include <cstdint>

#include <cuda_bf16.h>

#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/pair_grouping.hpp"

namespace airmoe::experts::cuda {

using airmoe::cuda::PairGroups;

struct GroupScoresShape {
  static constexpr int kThreads = 256;
  static constexpr int kStages = 4;
  static constexpr int kPairs = 64;    // of one block
  static constexpr int kUnits = 64;    // table rows per chunk
  static constexpr int kColumns = 64;  // of one slab
  static constexpr int kStageBytes = kUnits * kColumns * 2;
  static constexpr int kTokenSlabBytes = kPairs * kColumns * 2;

  static constexpr int64_t slabs(int64_t d) { return (d + kColumns - 1) / kColumns; }
  static constexpr int64_t shared_bytes(int64_t d) {
    return slabs(d) * kTokenSlabBytes + kStages * kStageBytes;
  }
};

/// Walks over the experts of sorted pairs [begin, end), their chunks of units and slabs of columns.
class GroupWalk {
 public:
  __device__ GroupWalk(const PairGroups& groups, int begin, int end, int units, int slabs)
      : groups_(groups), end_(end), units_(units), slabs_(slabs) {
    start(begin);
  }
  __device__ bool done() const { return from >= end_; }
  __device__ bool last_slab() const { return slab + 1 == slabs_; }
  __device__ void advance() {
    if (++slab < slabs_) return;
    slab = 0;
    unit += GroupScoresShape::kUnits;
    if (unit >= units_) start(to);
  }

  int row = 0, from = 0, to = 0;  // pairs [from, to) of the expert at hand
  int unit = 0, slab = 0;         // first unit of the chunk, slab

 private:
  __device__ void start(int begin) {
    from = begin;
    unit = 0;
    if (begin >= end_) return;
    row = groups_.row[begin];
    to = min(groups_.offset[row + 1], end_);
  }

  const PairGroups& groups_;
  int end_, units_, slabs_;
};

/// Block = 64 sorted pairs. Warp w has pairs 16 (w % 4) .. and units 32 (w / 4) .. of a chunk.
template <class Epilogue>
__global__ void __launch_bounds__(GroupScoresShape::kThreads)
    pair_scores_groups_kernel(const __grid_constant__ PairGroups groups,
                              const __nv_bfloat16* __restrict__ x, int d,
                              const __nv_bfloat16* __restrict__ table, int units,
                              const __grid_constant__ Epilogue epilogue) {
  using Shape = GroupScoresShape;
  using namespace airmoe::cuda;
  extern __shared__ __align__(128) unsigned char shared[];
  const int slabs = static_cast<int>(Shape::slabs(d));
  const uint32_t token_slabs = shared_address(shared);
  const uint32_t ring = token_slabs + slabs * Shape::kTokenSlabBytes;
  const int begin = static_cast<int>(blockIdx.x) * Shape::kPairs;
  const int end = min(begin + Shape::kPairs, static_cast<int>(groups.pairs));
  const int active = static_cast<int>(groups.active);

  const int copy_segment = threadIdx.x % 8, copy_row = threadIdx.x / 8;
  GroupWalk ahead(groups, begin, end, units, slabs);
  int stage = 0;
  const auto copy = [&]() {
    if (!ahead.done()) {
      const int column = ahead.slab * Shape::kColumns + copy_segment * 8;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = copy_row + 32 * i;
        const bool valid = column < d && ahead.unit + r < units;
        const int64_t from = static_cast<int64_t>(ahead.row) * units + ahead.unit + r;
        copy_async_16(ring + stage * Shape::kStageBytes + swizzled<8>(r, copy_segment),
                      valid ? table + from * d + column : table, valid);
      }
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
      ahead.advance();
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = copy_row + 32 * i;
    const bool valid_pair = begin + r < end;
    const int token = valid_pair ? groups.token[groups.pair[begin + r] / active] : 0;
    for (int slab = 0; slab < slabs; ++slab) {
      const int column = slab * Shape::kColumns + copy_segment * 8;
      const bool valid = valid_pair && column < d;
      copy_async_16(token_slabs + slab * Shape::kTokenSlabBytes + swizzled<8>(r, copy_segment),
                    valid ? x + static_cast<int64_t>(token) * d + column : x, valid);
    }
  }
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) copy();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_pair = begin + warp % 4 * 16, first_unit = warp / 4 * 32;
  int pair[2] = {};
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int i = first_pair + upper * 8 + lane / 4;
    if (i < end) pair[upper] = groups.pair[i];
  }
  float sum[4][4] = {};
  int read_stage = 0;
  for (GroupWalk walk(groups, begin, end, units, slabs); !walk.done(); walk.advance()) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();
    copy();
    const uint32_t left = token_slabs + walk.slab * Shape::kTokenSlabBytes;
    const uint32_t right = ring + read_stage * Shape::kStageBytes;
    read_stage = read_stage + 1 == Shape::kStages ? 0 : read_stage + 1;
    // Warps without pairs of this expert or without units have nothing to do.
    if (first_pair >= walk.to || first_pair + 16 <= walk.from || walk.unit + first_unit >= units) {
      continue;
    }
#pragma unroll
    for (int k = 0; k < Shape::kColumns; k += 16) {
      uint32_t a[4];
      load_matrix_x4(a, left + swizzled<8>(warp % 4 * 16 + lane % 16, k / 8 + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t b[4];
        load_matrix_x4(b, right + swizzled<8>(first_unit + j * 16 + lane % 8 + lane / 16 * 8,
                                              k / 8 + lane / 8 % 2));
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        mma_bf16(sum[2 * j], a, b0);
        mma_bf16(sum[2 * j + 1], a, b1);
      }
    }
    if (!walk.last_slab()) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = first_pair + e / 2 * 8 + lane / 4;
        const int unit = walk.unit + first_unit + j * 8 + lane % 4 * 2 + e % 2;
        if (i >= walk.from && i < walk.to && unit < units) epilogue(pair[e / 2], unit, sum[j][e]);
        sum[j][e] = 0;
      }
    }
  }
}

}  // namespace airmoe::experts::cuda
