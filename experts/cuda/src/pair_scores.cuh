#pragma once
// Products of tokens with the rows of their selected candidates: for every pair p and unit j
//   epilogue(p, j, <x(token(p)), table(row(p) * units + j)>)
// on tensor cores, by tiles (pair_scores_tiles.cuh) or by experts (pair_scores_groups.cuh), or pair
// by pair.

#include <algorithm>
#include <type_traits>

#include "experts/cuda/src/pair_scores_groups.cuh"
#include "experts/cuda/src/pair_scores_tiles.cuh"

namespace airmoe::experts::cuda {

inline constexpr int kPairThreads = 256;

/// Block = place, warp = pair: the specification, and what fp32 uses.
template <class T, class Epilogue>
__global__ void __launch_bounds__(kPairThreads)
    pair_scores_kernel(const __grid_constant__ PairTiles tiles, const T* __restrict__ x, int d,
                       const T* __restrict__ table, int units,
                       const __grid_constant__ Epilogue epilogue) {
  const int tile = blockIdx.x / airmoe::cuda::kTileTokens;
  if (tile >= *tiles.tokens.tiles) return;
  const int place =
      tiles.tokens.tile_begin[tile] + static_cast<int>(blockIdx.x) % airmoe::cuda::kTileTokens;
  if (place >= tiles.tokens.tile_end[tile]) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int active = static_cast<int>(tiles.active);
  const uint16_t* position = tiles.position + static_cast<int64_t>(place) * active;
  const int32_t* row = tiles.lists.row + tiles.tokens.tile_codeword[tile] * tiles.lists.length;
  const T* const from = x + static_cast<int64_t>(tiles.tokens.token[place]) * d;
  for (int item = warp; item < active * units; item += kPairThreads / 32) {
    const int k = item / units, unit = item % units;
    const T* with = table + (static_cast<int64_t>(row[position[k]]) * units + unit) * d;
    float sum = 0;
    for (int i = lane; i < d; i += 32) {
      sum = fmaf(static_cast<float>(from[i]), static_cast<float>(with[i]), sum);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) epilogue(static_cast<int64_t>(place) * active + k, unit, sum);
  }
}

/// The selected pairs of a micro-batch.
struct PairWork {
  const PairTiles& tiles;
  const PairGroups* groups = nullptr;  ///< when given, bf16 goes by experts
};

/// @param x      token order. Shape: [n, d]
/// @param table  Shape: [rows * units, d]
template <class T, class Epilogue>
void pair_scores(const PairWork& work, const T* x, int64_t d, const T* table, int64_t units,
                 const Epilogue& epilogue, cudaStream_t stream) {
  const PairTiles& tiles = work.tiles;
  const int dim = static_cast<int>(d), m = static_cast<int>(units);
  if constexpr (!std::is_same_v<T, float>) {
    const int64_t most = airmoe::cuda::device_properties().shared_bytes_per_block;
    const int64_t group_shared = GroupScoresShape::shared_bytes(d);
    if (work.groups != nullptr && group_shared <= most) {
      const auto kernel = pair_scores_groups_kernel<Epilogue>;
      AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(group_shared)));
      const int64_t blocks =
          (work.groups->pairs + GroupScoresShape::kPairs - 1) / GroupScoresShape::kPairs;
      kernel<<<static_cast<unsigned>(blocks), GroupScoresShape::kThreads,
               static_cast<std::size_t>(group_shared), stream>>>(*work.groups, x, dim, table, m,
                                                                 epilogue);
      AIRMOE_CUDA_LAUNCHED();
      return;
    }
    const int64_t shared = ScoresShape::shared_bytes(d);
    if (shared <= most && tiles.width * units < Divider::kLimit) {
      // Blocks of about four chunks of a tile's candidates: few enough to keep the tokens for a
      // while, many enough to fill the device.
      const int64_t chunks = tiles.width * units / ScoresShape::kRows;
      const int splits = static_cast<int>(std::max<int64_t>(1, (chunks + 3) / 4));
      const auto kernel = units == 1 ? pair_scores_tiles_kernel<true, Epilogue>
                                     : pair_scores_tiles_kernel<false, Epilogue>;
      AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)));
      kernel<<<static_cast<unsigned>(tiles.tokens.tile_limit * splits), ScoresShape::kThreads,
               static_cast<std::size_t>(shared), stream>>>(tiles, x, dim, table, Divider(units),
                                                           splits, epilogue);
      AIRMOE_CUDA_LAUNCHED();
      return;
    }
  }
  pair_scores_kernel<T, Epilogue>
      <<<static_cast<unsigned>(tiles.tokens.tile_limit * airmoe::cuda::kTileTokens), kPairThreads,
         0, stream>>>(tiles, x, dim, table, m, epilogue);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::experts::cuda
