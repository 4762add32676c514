#include <algorithm>
#include <bit>
#include <limits>

#include <cub/device/device_radix_sort.cuh>

#include "comm/base/cuda/pair_grouping.hpp"

namespace airmoe::cuda {
namespace {

constexpr int kThreads = 256;

/// row[p] and pair[p] = p for all pairs. Block = (tile, part of its pairs).
__global__ void __launch_bounds__(kThreads)
    pair_rows_kernel(CodewordTokens tokens, DeviceLists lists,
                     const uint16_t* __restrict__ position, int active, uint32_t* __restrict__ row,
                     int32_t* __restrict__ pair) {
  const int tile = blockIdx.x;
  if (tile >= *tokens.tiles) return;
  const int32_t* list_row = lists.row + tokens.tile_codeword[tile] * lists.length;
  const int64_t end = static_cast<int64_t>(tokens.tile_end[tile]) * active;
  const int stride = static_cast<int>(gridDim.y) * kThreads;
  for (int64_t p = static_cast<int64_t>(tokens.tile_begin[tile]) * active + blockIdx.y * kThreads +
                   threadIdx.x;
       p < end; p += stride) {
    row[p] = static_cast<uint32_t>(list_row[position[p]]);
    pair[p] = static_cast<int32_t>(p);
  }
}

/// offset[r] = number of pairs with a smaller row.
__global__ void __launch_bounds__(kThreads)
    offsets_kernel(const int32_t* __restrict__ row, int pairs, int rows,
                   int32_t* __restrict__ offset) {
  const int r = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (r > rows) return;
  int low = 0, high = pairs;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (row[middle] < r) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  offset[r] = low;
}

/// Stable, by the bits that rows have. `scratch` grows.
void sort_pairs(cub::DoubleBuffer<uint32_t>& keys, cub::DoubleBuffer<int32_t>& values, int64_t size,
                int64_t rows, DeviceBuffer<unsigned char>& scratch, cudaStream_t stream) {
  const int bits = std::bit_width(static_cast<uint64_t>(rows > 1 ? rows - 1 : 1));
  std::size_t bytes = 0;
  AIRMOE_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, static_cast<int>(size),
                                              0, bits, stream));
  scratch.ensure(static_cast<int64_t>(bytes));
  AIRMOE_CUDA(cub::DeviceRadixSort::SortPairs(scratch.data(), bytes, keys, values,
                                              static_cast<int>(size), 0, bits, stream));
}

}  // namespace

void DevicePairGrouping::build(const CodewordTokens& tokens, const DeviceLists& lists,
                               const uint16_t* position, int64_t active, int64_t rows,
                               cudaStream_t stream, int64_t slice) {
  const int64_t pairs = tokens.tokens * active;
  AIRMOE_CHECK(
      pairs < std::numeric_limits<int32_t>::max() && rows < std::numeric_limits<int32_t>::max(),
      "{} tokens with {} pairs each in one micro-batch are too many for a device", tokens.tokens,
      active);
  const int64_t slice_pairs = std::max<int64_t>(1, (slice > 0 ? slice : tokens.tokens) * active);
  const int64_t count = std::max<int64_t>(1, (pairs + slice_pairs - 1) / slice_pairs);
  for (int i = 0; i < 2; ++i) {
    row_[i].ensure(pairs);
    pair_[i].ensure(pairs);
  }
  offset_.ensure(count * (rows + 1));
  if (pairs > 0) {
    const dim3 grid(static_cast<unsigned>(tokens.tile_limit), 4);
    pair_rows_kernel<<<grid, kThreads, 0, stream>>>(
        tokens, lists, position, static_cast<int>(active), row_[0].data(), pair_[0].data());
    AIRMOE_CUDA_LAUNCHED();
  }
  slices_.clear();
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = s * slice_pairs;
    const int64_t size = std::min(slice_pairs, pairs - begin);
    cub::DoubleBuffer<uint32_t> keys(row_[0].data() + begin, row_[1].data() + begin);
    cub::DoubleBuffer<int32_t> values(pair_[0].data() + begin, pair_[1].data() + begin);
    if (size > 0) sort_pairs(keys, values, size, rows, scratch_, stream);
    const auto* sorted = reinterpret_cast<const int32_t*>(keys.Current());
    int32_t* const offset = offset_.data() + s * (rows + 1);
    offsets_kernel<<<static_cast<unsigned>(rows / kThreads + 1), kThreads, 0, stream>>>(
        sorted, static_cast<int>(size), static_cast<int>(rows), offset);
    AIRMOE_CUDA_LAUNCHED();
    slices_.push_back({rows, size, active, values.Current(), sorted, offset, tokens.token});
  }
}

}  // namespace airmoe::cuda
