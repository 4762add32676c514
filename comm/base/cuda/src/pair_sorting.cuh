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

/// Sorts the pairs of every slice of `slice` places (0: all) by key >> shift, and calls
/// view(size, pair, key, offset) with what came of it, offsets of `groups` groups.
template <class View>
void sort_slices(const CodewordTokens& tokens, int64_t active, int64_t slice, int shift,
                 int64_t keys_below, int64_t groups, DeviceBuffer<uint32_t> (&key)[2],
                 DeviceBuffer<int32_t> (&pair)[2], DeviceBuffer<int32_t>& offset,
                 DeviceBuffer<unsigned char>& scratch, cudaStream_t stream, const View& view) {
  const int64_t pairs = tokens.tokens * active;
  const int64_t slice_pairs = std::max<int64_t>(1, (slice > 0 ? slice : tokens.tokens) * active);
  const int64_t count = std::max<int64_t>(1, (pairs + slice_pairs - 1) / slice_pairs);
  offset.ensure(count * (groups + 1));
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = s * slice_pairs;
    const int64_t size = std::min(slice_pairs, pairs - begin);
    cub::DoubleBuffer<uint32_t> keys(key[0].data() + begin, key[1].data() + begin);
    cub::DoubleBuffer<int32_t> values(pair[0].data() + begin, pair[1].data() + begin);
    if (size > 0) sort_by_key(keys, values, size, shift, keys_below, scratch, stream);
    const auto* sorted = reinterpret_cast<const int32_t*>(keys.Current());
    int32_t* const offsets = offset.data() + s * (groups + 1);
    group_offsets_kernel<<<static_cast<unsigned>(groups / kSortingThreads + 1), kSortingThreads, 0,
                           stream>>>(sorted, static_cast<int>(size), shift,
                                     static_cast<int>(groups), offsets);
    AIRMOE_CUDA_LAUNCHED();
    view(size, values.Current(), sorted, offsets);
  }
}

/// Keys of all pairs, as sort_slices() wants them.
inline void make_keys(const CodewordTokens& tokens, const DeviceLists& lists,
                      const uint16_t* position, int64_t active, const int32_t* number,
                      DeviceBuffer<uint32_t> (&key)[2], DeviceBuffer<int32_t> (&pair)[2],
                      cudaStream_t stream) {
  const int64_t pairs = tokens.tokens * active;
  for (int i = 0; i < 2; ++i) {
    key[i].ensure(pairs);
    pair[i].ensure(pairs);
  }
  if (pairs == 0) return;
  const dim3 grid(static_cast<unsigned>(tokens.tile_limit), 4);
  pair_keys_kernel<<<grid, kSortingThreads, 0, stream>>>(
      tokens, lists, position, static_cast<int>(active), number, key[0].data(), pair[0].data());
  AIRMOE_CUDA_LAUNCHED();
}

/// Throws Error where pairs or rows are too many for 32 bits.
inline void check_pair_count(const CodewordTokens& tokens, int64_t active, int64_t rows) {
  AIRMOE_CHECK(tokens.tokens * active < std::numeric_limits<int32_t>::max() &&
                   rows < std::numeric_limits<int32_t>::max(),
               "{} tokens with {} pairs each in one micro-batch are too many for a device",
               tokens.tokens, active);
}

}  // namespace airmoe::cuda
