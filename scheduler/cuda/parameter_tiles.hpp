#pragma once
// The elements of all parameters cut into pieces that one block works on.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/divider.hpp"

namespace airmoe::scheduler::cuda {

/// Elements [begin, begin + count) of one parameter: whole rows of experts or a part of one row.
struct ParameterTile {
  int64_t begin = 0;
  int32_t count = 0;
  bool decay = false;
  bool waits = false;              ///< rows without a gradient are not updated now
  bool copied = true;              ///< has a copy in the compute type
  airmoe::cuda::Divider row_size;  ///< elements, or more than the tile has
  /// ExpertRows of the tile's first row on; nullptr: all elements have gradients.
  const int32_t* written = nullptr;
  int32_t* updated = nullptr;

#ifdef __CUDACC__
  __device__ __forceinline__ int row_of(int64_t i) const {
    return row_size.divide(static_cast<int>(i - begin));
  }
  /// Whether element i has a gradient in the update of this number.
  __device__ __forceinline__ bool has_gradient(int64_t i, int32_t update) const {
    return written == nullptr || written[row_of(i)] == update;
  }
#endif
};

struct ParameterTiles {
  static constexpr int64_t kElements = 8192;  ///< most of a tile
  airmoe::cuda::DeviceBuffer<ParameterTile> tile;
  int64_t replicated = 0, by_expert = 0;  ///< tiles, in this order
};

}  // namespace airmoe::scheduler::cuda
