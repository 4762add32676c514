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

  /// So many blocks of a group: more than a device runs at a time.
  static constexpr int kGroupBlocks = 1024;

  BlockOrder(int64_t columns_, int64_t levels_)
      : columns(static_cast<int>(columns_)),
        levels(static_cast<int>(levels_)),
        group(std::max(1, kGroupBlocks / levels)) {}
  unsigned blocks() const { return static_cast<unsigned>(columns) * static_cast<unsigned>(levels); }

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

}  // namespace airmoe::scheduler::cuda::attention
