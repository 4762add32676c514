#pragma once
// What both groupings of pairs share: a key per pair, the stable sort, where groups start.

#include <algorithm>
#include <bit>
#include <limits>

#include <cub/device/device_radix_sort.cuh>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"
#include "comm/base/error.hpp"

namespace airmoe::cuda {

inline constexpr int kSortingThreads = 256;

/// key[p] = number[row] (nullptr: the row) and pair[p] = p for all pairs. Block = (tile, part of
/// its pairs).
static __global__ void __launch_bounds__(kSortingThreads)
    pair_keys_kernel(CodewordTokens tokens, DeviceLists lists,
                     const uint16_t* __restrict__ position, int active,
                     const int32_t* __restrict__ number, uint32_t* __restrict__ key,
                     int32_t* __restrict__ pair) {
  const int tile = blockIdx.x;
  if (tile >= *tokens.tiles) return;
  const int32_t* list_row = lists.row + tokens.tile_codeword[tile] * lists.length;
  const int64_t end = static_cast<int64_t>(tokens.tile_end[tile]) * active;
  const int stride = static_cast<int>(gridDim.y) * kSortingThreads;
  for (int64_t p = static_cast<int64_t>(tokens.tile_begin[tile]) * active +
                   blockIdx.y * kSortingThreads + threadIdx.x;
       p < end; p += stride) {
    const int32_t row = list_row[position[p]];
    key[p] = static_cast<uint32_t>(number != nullptr ? number[row] : row);
    pair[p] = static_cast<int32_t>(p);
  }
}

/// offset[g] = number of keys with key >> shift < g, g = 0 .. groups.
static __global__ void __launch_bounds__(kSortingThreads)
    group_offsets_kernel(const int32_t* __restrict__ key, int size, int shift, int groups,
                         int32_t* __restrict__ offset) {
  const int g = static_cast<int>(blockIdx.x) * kSortingThreads + static_cast<int>(threadIdx.x);
  if (g > groups) return;
  int low = 0, high = size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (key[middle] >> shift < g) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  offset[g] = low;
}

/// Stable, by bits [first_bit, bits of keys below `limit`). `scratch` grows.
inline void sort_by_key(cub::DoubleBuffer<uint32_t>& keys, cub::DoubleBuffer<int32_t>& values,
                        int64_t size, int first_bit, int64_t limit,
                        DeviceBuffer<unsigned char>& scratch, cudaStream_t stream) {
  const int bits =
      static_cast<int>(std::bit_width(static_cast<uint64_t>(limit > 1 ? limit - 1 : 1)));
  const int end_bit = std::max(first_bit + 1, bits);
  std::size_t bytes = 0;
  AIRMOE_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, static_cast<int>(size),
                                              first_bit, end_bit, stream));
  scratch.ensure(static_cast<int64_t>(bytes));
  AIRMOE_CUDA(cub::DeviceRadixSort::SortPairs(scratch.data(), bytes, keys, values,
                                              static_cast<int>(size), first_bit, end_bit, stream));
}

/// Throws Error where pairs or rows are too many for 32 bits.
inline void check_pair_count(const CodewordTokens& tokens, int64_t active, int64_t rows) {
  AIRMOE_CHECK(tokens.tokens * active < std::numeric_limits<int32_t>::max() &&
                   rows < std::numeric_limits<int32_t>::max(),
               "{} tokens with {} pairs each in one micro-batch are too many for a device",
               tokens.tokens, active);
}

}  // namespace airmoe::cuda
