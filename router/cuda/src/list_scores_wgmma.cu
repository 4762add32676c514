// Scores in bf16 on Hopper: tiles of 128 codewords x 256 experts, two or four warp groups with a
// part each, and a thread that has the copy engine bring what they need. Two blocks of a cluster
// have the same experts; each brings half of them to both.
//
// A block keeps its codewords and goes from tile to tile of the experts. Where the codewords fit,
// they stay in shared memory; longer ones are copied again with every tile.
//
// Experts lie in shared memory in such an order that the sums of a thread are of eight neighbouring
// experts: expert 8 q + 2 t + b of 32 is row 8 t + 2 q + b.

#include "comm/base/cuda/cluster_launch.hpp"
#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/tensor_map.hpp"
#include "comm/base/cuda/tma.cuh"
#include "router/cuda/src/list_append_rows.cuh"

namespace airmoe::router::cuda {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kRows = 128, kColumns = 256;  // of a tile
constexpr int kStep = 64;                   // elements of k per stage
constexpr int kStages = 4;
constexpr int kCluster = 2;
constexpr int kRowBytes = kStep * 2;
constexpr int kCodewordBytes = kRows * kRowBytes, kExpertBytes = kColumns * kRowBytes;
constexpr int kResidentSteps = 4;  // codewords of 256 elements

/// Of warp groups that multiply and one that copies. The former have 64 rows each; four of them
/// share out the columns too, which hides more of what is done with scores, but reads more shared
/// memory.
constexpr int threads(int groups) {
  return (groups + 1) * 128;
}

/// Shared memory from a multiple of 1,024 on: resident codewords, stages, scores, barriers.
template <int kGroups, bool kResident>
struct Layout {
  static constexpr int kStageBytes = kExpertBytes + (kResident ? 0 : kCodewordBytes);
  static constexpr int kStagesAt = kResident ? kResidentSteps * kCodewordBytes : 0;
  static constexpr int kScoresAt = kStagesAt + kStages * kStageBytes;
  static constexpr int kBarriersAt = kScoresAt + kGroups * 128 * kScoreBytes;
  static constexpr int kBytes = kBarriersAt + (2 * kStages + 1) * 8 + 1024;
  uint32_t base;
  /// Experts of a stage, and behind them codewords that are not resident.
  __device__ uint32_t experts(int stage) const { return base + kStagesAt + stage * kStageBytes; }
  __device__ uint32_t codewords(int stage, int part) const {
    return kResident ? base + part * kCodewordBytes : experts(stage) + kExpertBytes;
  }
  __device__ uint32_t scores() const { return base + kScoresAt; }
  __device__ uint32_t full(int stage) const { return base + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return full(kStages + stage); }
  __device__ uint32_t resident() const { return full(2 * kStages); }
};

/// Rows are codewords first_codeword .. + rows - 1. Blocks share out the tiles: a cluster has two
/// neighbouring row tiles, and of every tile_step tiles of experts one.
template <bool kJitter, bool kResident, int kGroups>
__global__ void __launch_bounds__(threads(kGroups), 1)
    scores_wgmma_kernel(ScoreTask<Bf16> task, const __grid_constant__ CUtensorMap codebook,
                        const __grid_constant__ CUtensorMap unit, int rows) {
#if defined(AIRMOE_HAS_WGMMA)
  using namespace airmoe::cuda;
  constexpr int kOwnColumns = kColumns * 2 / kGroups;
  using Shared = Layout<kGroups, kResident>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Shared at{(shared_address(shared) + 1023) / 1024 * 1024};
  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const auto rank = static_cast<int>(rank_in_cluster());
  const int row_pairs = (rows + kCluster * kRows - 1) / (kCluster * kRows);
  const int tiles = static_cast<int>((task.experts + kColumns - 1) / kColumns);
  const int tile_step = static_cast<int>(gridDim.x) / kCluster / row_pairs;
  // No tile for a cluster that is left over.
  const int first_tile = cluster / row_pairs < tile_step ? cluster / row_pairs : tiles;
  const int first_row = (cluster % row_pairs * kCluster + rank) * kRows;
  const int parts = (static_cast<int>(task.dim) + kStep - 1) / kStep;
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4, lane = threadIdx.x & 31;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      start_barrier(at.full(s), 1);
      start_barrier(at.empty(s), kCluster * kGroups * 4);
    }
    start_barrier(at.resident(), 1);
    publish_barriers();
  }
  __syncthreads();
  synchronize_cluster();

  Ring<kStages> place;
  if (group == kGroups) {
    keep_registers<kGroups == 2 ? 40 : 32>();
    if (warp == 0 && lane == 0) {
      const int codeword = static_cast<int>(task.first_codeword) + first_row;
      if (kResident) {
        expect_bytes(at.resident(), static_cast<uint32_t>(parts * kCodewordBytes));
        for (int part = 0; part < parts; ++part) {
          copy_box(at.codewords(0, part), codebook, part * kStep, codeword, at.resident());
        }
      }
      place.parity = 1;  // the stages are empty
      for (int tile = first_tile; tile < tiles; tile += tile_step) {
        for (int part = 0; part < parts; ++part, place.advance()) {
          const int stage = place.stage;
          await_barrier(at.empty(stage), place.parity);
          expect_bytes(at.full(stage), Shared::kStageBytes);
          if (!kResident) {
            copy_box(at.codewords(stage, part), codebook, part * kStep, codeword, at.full(stage));
          }
          constexpr int kShare = kExpertBytes / kCluster;
          copy_box_to((1 << kCluster) - 1, at.experts(stage) + rank * kShare, unit, part * kStep,
                      tile * (kColumns / 32) + rank * (kColumns / 32 / kCluster), at.full(stage));
        }
      }
    }
  } else {
    take_registers<kGroups == 2 ? 232 : 112>();
    const int own_rows = group % 2 * (kRows / 2), own_columns = group / 2 * kOwnColumns;
    const int row = first_row + own_rows + warp * 16 + lane / 4;
    const ThreadRows<kJitter> mine(task, row, rows, at.scores() + threadIdx.x * 16,
                                   kGroups * 128 * 16);
    const auto release = [&](int stage) {
      if (lane < kCluster) arrive_at(at.empty(stage), static_cast<uint32_t>(lane));
    };
    if (kResident) await_barrier(at.resident(), 0);
    float sums[kOwnColumns / 8][4];
    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      pin(sums);
      int last = 0;
      for (int part = 0; part < parts; ++part, place.advance()) {
        const int stage = place.stage;
        await_barrier(at.full(stage), place.parity);
        const uint64_t a = describe_tile(at.codewords(stage, part) + own_rows * kRowBytes);
        const uint64_t b = describe_tile(at.experts(stage) + own_columns * kRowBytes);
        begin_products();
#pragma unroll
        for (int i = 0; i < kStep / 16; ++i) {
          multiply_async(sums, a + 2 * i, b + 2 * i, part + i > 0);
        }
        commit_products();
        if (part > 0) {
          wait_products<1>();
          release(last);
        }
        last = stage;
      }
      wait_products<0>();
      release(last);
      pin(sums);
      mine.append(sums, tile * kColumns + own_columns, task);
    }
  }
  __syncwarp();
  synchronize_cluster();  // nobody leaves while others write to its shared memory
#endif
}

template <bool kJitter, bool kResident, int kGroups>
void launch(const ScoreTask<Bf16>& task, int64_t rows, cudaStream_t stream) {
  const int64_t d = task.dim;
  const CUtensorMap codebook = airmoe::cuda::describe_bf16(
      task.codebook, {{d, 0, kStep}, {task.first_codeword + rows, d * 2, kRows}});
  const CUtensorMap unit = airmoe::cuda::describe_bf16(
      task.unit, {{d, 0, kStep},
                  {2, d * 2, 2},
                  {4, d * 16, 4},
                  {4, d * 4, 4},
                  {task.experts / 32, d * 64, kColumns / 32 / kCluster}});
  const int64_t pairs = (rows + kCluster * kRows - 1) / (kCluster * kRows);
  const int64_t tiles = (task.experts + kColumns - 1) / kColumns;
  const int64_t resident = airmoe::cuda::device_properties().multiprocessors / kCluster;
  const int64_t clusters = std::max(pairs, std::min(resident, pairs * tiles));
  const auto kernel = scores_wgmma_kernel<kJitter, kResident, kGroups>;
  airmoe::cuda::launch_in_clusters(kernel, kCluster, clusters * kCluster, threads(kGroups),
                                   Layout<kGroups, kResident>::kBytes, stream, task, codebook, unit,
                                   static_cast<int>(rows));
}

}  // namespace

void append_scores_wgmma(const ScoreTask<Bf16>& task, int64_t rows, cudaStream_t stream) {
  if (task.dim <= kResidentSteps * kStep) {
    task.jittered ? launch<true, true, 4>(task, rows, stream)
                  : launch<false, true, 4>(task, rows, stream);
  } else {
    task.jittered ? launch<true, false, 4>(task, rows, stream)
                  : launch<false, false, 2>(task, rows, stream);
  }
}

}  // namespace airmoe::router::cuda
