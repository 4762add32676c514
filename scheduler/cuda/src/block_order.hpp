#pragma once
// In which order the blocks of an attention kernel start.

#include <algorithm>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::scheduler::cuda::attention {

/// A grid of columns (heads of sequences) by levels (tiles of rows), in one dimension. Columns go
/// in groups, so that the keys of those at work together stay in the second-level cache; within a
/// group level 0 of all its columns comes first: let that be the most work, so that the end is
/// even.
struct BlockOrder {
  int columns, levels, group;

  /// So many tiles of a group: more than a device runs at a time, and enough that the last group's
  /// long tiles do not decide the end.
  static constexpr int kGroupTiles = 1024;

  BlockOrder(int64_t columns_, int64_t levels_, int group_tiles = kGroupTiles)
      : columns(static_cast<int>(columns_)),
        levels(static_cast<int>(levels_)),
        group(std::max(1, group_tiles / levels)) {}
  constexpr int tiles() const { return columns * levels; }

  struct Place {
    int column, level;
  };
#if defined(__CUDACC__)
  __device__ Place place_of(int block) const {
    const int first = block / (group * levels) * group;
    const int width = min(group, columns - first), rest = block - first * levels;
    return {first + rest % width, rest / width};
  }
#endif
};

#if defined(__CUDACC__)
/// The next tile of a block of a grid that takes its first one by its own number: any free one, so
/// that blocks end together. Not below order.tiles(): there is none. `tickets` is zero before the
/// kernel and after it.
__device__ __forceinline__ int take_ticket(const BlockOrder& order, int* tickets) {
  const int ticket = atomicAdd(tickets, 1);
  // Every block asks until it gets none, so that there are as many questions as tiles.
  if (ticket == order.tiles() - 1) *tickets = 0;
  return static_cast<int>(gridDim.x) + ticket;
}
#endif

}  // namespace airmoe::scheduler::cuda::attention
