// Codewords of tokens on Hopper: a block keeps 64 tokens in shared memory and runs over all
// codewords in tiles of 256, two warp groups with half of them each; a thread has the copy engine
// bring them. The two blocks of a cluster bring half of every tile to both.

#include "comm/base/cuda/cluster_launch.hpp"
#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/tensor_map.hpp"
#include "comm/base/cuda/tma.cuh"
#include "comm/base/cuda/wgmma.hpp"
#include "router/cuda/src/assign_wgmma.hpp"

namespace airmoe::router::cuda {
namespace {

constexpr int kRows = 64, kColumns = 256;  // tokens of a block, codewords of a tile
constexpr int kStep = 64;                  // elements of k per stage
constexpr int kCluster = 2;
constexpr int kGroups = 2;  // warp groups that multiply; a third one copies
constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kRowBytes = kStep * 2;
constexpr int kPartBytes = kRows * kRowBytes, kStageBytes = kColumns * kRowBytes;

struct Best {
  float score;
  int32_t index;
};

/// Shared memory from a multiple of 1,024 on: tokens, stages of codewords, what the second warp
/// group found, barriers.
template <int kStages>
struct Layout {
  static int64_t bytes(int parts) {
    return 1024 + int64_t{parts} * kPartBytes + kStages * kStageBytes +
           kRows * static_cast<int64_t>(sizeof(Best)) + (2 * kStages + parts) * 8;
  }
  unsigned char* base;
  int parts;  ///< of kStep elements of a row
  __device__ uint32_t tokens(int part) const {
    return airmoe::cuda::shared_address(base) + part * kPartBytes;
  }
  __device__ uint32_t stage(int stage) const { return tokens(parts) + stage * kStageBytes; }
  __device__ Best* found() const {
    return reinterpret_cast<Best*>(base + parts * kPartBytes + kStages * kStageBytes);
  }
  __device__ uint32_t full(int index) const {
    return stage(kStages) + kRows * static_cast<int>(sizeof(Best)) + index * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(kStages + stage); }
  __device__ uint32_t arrived(int part) const { return full(2 * kStages + part); }
};

#if defined(AIRMOE_HAS_WGMMA)
constexpr int kOwnColumns = kColumns / kGroups;

/// The larger score; of equal ones the smaller index.
__device__ __forceinline__ Best better(Best a, Best b) {
  return b.score > a.score || (b.score == a.score && b.index < a.index) ? b : a;
}

#endif

template <int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    assign_wgmma_kernel(const __grid_constant__ CUtensorMap hidden,
                        const __grid_constant__ CUtensorMap codebook, int n, int parts,
                        int codewords, int32_t* codeword) {
#if defined(AIRMOE_HAS_WGMMA)
  using namespace airmoe::cuda;
  extern __shared__ __align__(1024) unsigned char shared[];
  const Layout<kStages> at{shared + (1024 - shared_address(shared) % 1024) % 1024, parts};
  const auto rank = static_cast<int>(rank_in_cluster());
  const int first = static_cast<int>(blockIdx.x) * kRows;
  const int tiles = (codewords + kColumns - 1) / kColumns;
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4, lane = threadIdx.x & 31;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      start_barrier(at.full(s), 1);
      start_barrier(at.empty(s), kCluster * kGroups * 4);
    }
    for (int part = 0; part < parts; ++part) start_barrier(at.arrived(part), 1);
    publish_barriers();
  }
  __syncthreads();
  synchronize_cluster();

  Ring<kStages> place;
  if (group == kGroups) {
    keep_registers<40>();
    if (warp == 0 && lane == 0) {
      place.parity = 1;  // the stages are empty
      for (int tile = 0; tile < tiles; ++tile) {
        for (int part = 0; part < parts; ++part, place.advance()) {
          if (tile == 0) {
            expect_bytes(at.arrived(part), kPartBytes);
            copy_box(at.tokens(part), hidden, part * kStep, first, at.arrived(part));
          }
          const int stage = place.stage;
          await_barrier(at.empty(stage), place.parity);
          expect_bytes(at.full(stage), kStageBytes);
          constexpr int kShare = kColumns / kCluster;
          copy_flat_box_to((1 << kCluster) - 1, at.stage(stage) + rank * kShare * kRowBytes,
                           codebook, part * kStep, tile * kColumns + rank * kShare, at.full(stage));
        }
      }
    }
  } else {
    take_registers<232>();
    const auto release = [&](int stage) {
      if (lane < kCluster) arrive_at(at.empty(stage), static_cast<uint32_t>(lane));
    };
    Best best[2] = {{-INFINITY, 0}, {-INFINITY, 0}};  // of rows lane / 4 and lane / 4 + 8
    float sums[kOwnColumns / 8][4];
    for (int tile = 0; tile < tiles; ++tile) {
      pin(sums);
      int last = 0;
      for (int part = 0; part < parts; ++part, place.advance()) {
        const int stage = place.stage;
        if (tile == 0) await_barrier(at.arrived(part), 0);
        await_barrier(at.full(stage), place.parity);
        const uint64_t a = describe_tile(at.tokens(part));
        const uint64_t b = describe_tile(at.stage(stage) + group * kOwnColumns * kRowBytes);
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
      const int begin = tile * kColumns + group * kOwnColumns + 2 * (lane & 3);
#pragma unroll
      for (int j = 0; j < kOwnColumns / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int g = begin + 8 * j + (i & 1);
          Best& here = best[i >> 1];
          if (g < codewords && sums[j][i] > here.score) here = {sums[j][i], g};
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Best& here = best[half];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        here = better(
            here, {__shfl_xor_sync(~0u, here.score, mask), __shfl_xor_sync(~0u, here.index, mask)});
      }
      if (group == 1 && (lane & 3) == 0) at.found()[16 * warp + 8 * half + lane / 4] = here;
    }
    asm volatile("bar.sync 1, %0;\n" ::"n"(kGroups * 128) : "memory");
    if (group == 0 && (lane & 3) == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = 16 * warp + 8 * half + lane / 4;
        if (first + t < n) codeword[first + t] = better(best[half], at.found()[t]).index;
      }
    }
  }
  __syncwarp();
  synchronize_cluster();  // nobody leaves while others write to its shared memory
#endif
}

template <int kStages>
bool try_launch(const __nv_bfloat16* hidden, const __nv_bfloat16* codebook, int64_t n, int64_t d,
                int64_t codewords, int32_t* codeword, cudaStream_t stream) {
  const auto parts = static_cast<int>((d + kStep - 1) / kStep);
  const int64_t bytes = Layout<kStages>::bytes(parts);
  if (bytes > airmoe::cuda::device_properties().shared_bytes_per_block) return false;
  const CUtensorMap tokens =
      airmoe::cuda::describe_bf16(hidden, {{d, 0, kStep}, {n, d * 2, kRows}});
  const CUtensorMap rows = airmoe::cuda::describe_bf16(
      codebook, {{d, 0, kStep}, {codewords, d * 2, kColumns / kCluster}});
  const auto kernel = assign_wgmma_kernel<kStages>;
  constexpr int64_t kClusterRows = kRows * kCluster;
  airmoe::cuda::launch_in_clusters(
      kernel, kCluster, (n + kClusterRows - 1) / kClusterRows * kCluster, kThreads, bytes, stream,
      tokens, rows, static_cast<int>(n), parts, static_cast<int>(codewords), codeword);
  return true;
}

}  // namespace

bool try_assign_wgmma(const __nv_bfloat16* hidden, const __nv_bfloat16* codebook, int64_t n,
                      int64_t d, int64_t codewords, int32_t* codeword, cudaStream_t stream) {
  if (!airmoe::cuda::has_wgmma()) return false;
  return try_launch<4>(hidden, codebook, n, d, codewords, codeword, stream) ||
         try_launch<3>(hidden, codebook, n, d, codewords, codeword, stream);
}

}  // namespace airmoe::router::cuda
