// Scores in bf16 on tensor cores: tiles of 128 codewords x 128 experts, a warp has 64 x 32 of them.
//
// A block keeps its codewords and goes from tile to tile of the experts, and the copies for the
// next tile are under way while candidates of the last one are appended. Where the codewords fit,
// they stay in shared memory; longer ones are copied again with every tile.
//
// Experts lie in shared memory in such an order that the fragments of a thread are of eight
// neighbouring experts: expert 8 q + 2 t + b of a warp's 32 is column 2 q + b of its t-th tile.

#include "comm/base/cuda/device.hpp"
#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/wgmma.hpp"
#include "router/cuda/src/list_append.cuh"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::swizzled;

constexpr int kStep = 64;  // elements of k per stage
constexpr int kSegments = kStep / 8;
constexpr int kOperandBytes = kListTile * kStep * 2;
constexpr int kRowsPerCopy = kListThreads / kSegments;  // 32
constexpr int kCopies = kListTile / kRowsPerCopy;
constexpr int kBlocksPerProcessor = 2;
constexpr int kResidentSteps = 4;  // codewords of 256 elements: two blocks fit a multiprocessor

/// Where step `step` of a block, step `part` of its tile, lies in shared memory.
template <bool kResident>
struct Stages {
  static constexpr int kCount = kResident ? 2 : 3;
  static constexpr int kBytes =
      kResident ? (kResidentSteps + kCount) * kOperandBytes : 2 * kCount * kOperandBytes;
  static __device__ int codewords(int step, int part) {
    return kResident ? part * kOperandBytes : step % kCount * 2 * kOperandBytes;
  }
  static __device__ int experts(int step) {
    return kResident ? (kResidentSteps + step % kCount) * kOperandBytes
                     : (step % kCount * 2 + 1) * kOperandBytes;
  }
};

template <bool kJitter, bool kResident>
__global__ void __launch_bounds__(kListThreads, kBlocksPerProcessor)
    scores_bf16_kernel(ScoreTask<__nv_bfloat16> task) {
  using Stage = Stages<kResident>;
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ AppendShared shared;
  const int rows = *task.rows;
  const int row_tiles = (rows + kListTile - 1) / kListTile;
  if (row_tiles == 0) return;
  // Blocks share out the tiles of as many rows as there are: tile_step blocks per row tile.
  const int tiles = static_cast<int>((task.indices + kListTile - 1) / kListTile);
  const int tile_step = static_cast<int>(gridDim.x) / row_tiles;
  const int first_tile = static_cast<int>(blockIdx.x) / row_tiles;
  if (first_tile >= min(tiles, tile_step)) return;
  const int first_row = static_cast<int>(blockIdx.x) % row_tiles * kListTile;
  start_append(task, first_row, rows, shared);

  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int dim = static_cast<int>(task.dim);
  const uint32_t base = airmoe::cuda::shared_address(stages);
  const int parts = (dim + kStep - 1) / kStep;  // steps of a tile
  const int steps = (tiles - first_tile + tile_step - 1) / tile_step * parts;

  // Copies: this thread brings segment `segment` of rows row, row + 32, ... of both operands.
  const int segment = tid & (kSegments - 1), row = tid / kSegments;
  const int placed = (row >> 1 & 3) * 8 + (row >> 3) * 2 + (row & 1);
  int32_t a_row[kCopies];
#pragma unroll
  for (int j = 0; j < kCopies; ++j) {
    const int r = first_row + row + j * kRowsPerCopy;
    a_row[j] = r < rows ? task.codeword[r] * dim + segment * 8 : -1;
  }
  const int64_t expert_step = kRowsPerCopy * task.stride;
  int copied_part = 0, copied_tile = first_tile;
  const auto copy = [&](int step) {
    const int k = copied_part * kStep;
    const bool inside = k + segment * 8 < dim;
    if (!kResident || step < parts) {
      const uint32_t a = base + Stage::codewords(step, copied_part);
#pragma unroll
      for (int j = 0; j < kCopies; ++j) {
        airmoe::cuda::copy_async_16(a + swizzled<kSegments>(row + j * kRowsPerCopy, segment),
                                    task.codebook + a_row[j] + k, inside && a_row[j] >= 0);
      }
    }
    const int index = copied_tile * kListTile + row;
    const int64_t expert = (index >> 3) * 8 * task.stride + task.offset + (index & 7);
    const __nv_bfloat16* from = task.unit + expert * dim + (segment * 8 + k);
    const uint32_t b = base + Stage::experts(step);
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      airmoe::cuda::copy_async_16(b + swizzled<kSegments>(placed + j * kRowsPerCopy, segment),
                                  from + j * expert_step * dim,
                                  inside && expert + j * expert_step < task.experts);
    }
    if (++copied_part == parts) {
      copied_part = 0;
      copied_tile += tile_step;
    }
  };

  const int warp_row = (warp & 1) * 64, warp_column = (warp >> 1) * 32;
  float sum[4][4][4] = {};
  const auto multiply = [&](uint32_t a, uint32_t b) {
#pragma unroll
    for (int kk = 0; kk < kStep / 16; ++kk) {
      uint32_t x[4][4], y[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        airmoe::cuda::load_matrix_x4(
            x[i], a + swizzled<kSegments>(warp_row + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
      }
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        uint32_t both[4];
        airmoe::cuda::load_matrix_x4(
            both, b + swizzled<kSegments>(warp_column + (t + (lane >> 4)) * 8 + (lane & 7),
                                          kk * 2 + (lane >> 3 & 1)));
        y[t][0] = both[0];
        y[t][1] = both[1];
        y[t + 1][0] = both[2];
        y[t + 1][1] = both[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int t = 0; t < 4; ++t) airmoe::cuda::mma_bf16(sum[i][t], x[i], y[t]);
      }
    }
  };

#pragma unroll
  for (int step = 0; step < Stage::kCount - 1; ++step) {
    if (step < steps) copy(step);
    airmoe::cuda::commit_copies();
  }
  for (int step = 0, part = 0, tile = first_tile; step < steps; ++step) {
    airmoe::cuda::wait_copies<Stage::kCount - 2>();
    __syncthreads();
    if (step + Stage::kCount - 1 < steps) copy(step + Stage::kCount - 1);
    airmoe::cuda::commit_copies();
    multiply(base + Stage::codewords(step, part), base + Stage::experts(step));
    if (++part < parts) continue;
    float score[8][8];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float& from = sum[r / 2][j / 2][r % 2 * 2 + j % 2];
        score[r][j] = from;
        from = 0.0f;
      }
    }
    append_scores<kJitter>(
        score, [&](int r) { return warp_row + r / 2 * 16 + r % 2 * 8 + (lane >> 2); }, first_row,
        int64_t{tile} * kListTile + warp_column + (lane & 3) * 8, task, shared);
    part = 0;
    tile += tile_step;
  }
}

template <bool kJitter, bool kResident>
void launch(const ScoreTask<__nv_bfloat16>& task, int64_t row_limit, cudaStream_t stream) {
  const int64_t row_tiles = (row_limit + kListTile - 1) / kListTile;
  const int64_t tiles = (task.indices + kListTile - 1) / kListTile;
  const int64_t resident = kBlocksPerProcessor * airmoe::cuda::device_properties().multiprocessors;
  const int64_t blocks = std::max(row_tiles, std::min(resident, row_tiles * tiles));
  const auto kernel = scores_bf16_kernel<kJitter, kResident>;
  constexpr int kBytes = Stages<kResident>::kBytes;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<static_cast<unsigned>(blocks), kListThreads, kBytes, stream>>>(task);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void append_scores(const ScoreTask<__nv_bfloat16>& task, int64_t row_limit, cudaStream_t stream) {
  if (task.first_codeword >= 0 && task.experts % 32 == 0 && airmoe::cuda::has_wgmma()) {
    return append_scores_wgmma(task, row_limit, stream);
  }
  if (task.dim <= kResidentSteps * kStep) {
    task.jittered ? launch<true, true>(task, row_limit, stream)
                  : launch<false, true>(task, row_limit, stream);
  } else {
    task.jittered ? launch<true, false>(task, row_limit, stream)
                  : launch<false, false>(task, row_limit, stream);
  }
}

}  // namespace airmoe::router::cuda
