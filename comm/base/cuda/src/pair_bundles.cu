#include "comm/base/cuda/pair_bundles.hpp"
#include "comm/base/cuda/src/pair_sorting.cuh"

namespace airmoe::cuda {
namespace {

static_assert(kTileTokens < 256, "counts of a tile are bytes");

/// home[row] = the largest (times a tile selected the row, codeword of the tile) over all tiles.
/// Counts by position, four bytes to a word of shared memory. Block = tile.
__global__ void __launch_bounds__(kSortingThreads)
    find_homes_kernel(CodewordTokens tokens, DeviceLists lists,
                      const uint16_t* __restrict__ position, int active,
                      uint32_t* __restrict__ home) {
  extern __shared__ uint32_t by_position[];
  const int tile = blockIdx.x;
  if (tile >= *tokens.tiles) return;
  const int words = static_cast<int>((lists.length + 3) / 4);
  for (int w = threadIdx.x; w < words; w += kSortingThreads) by_position[w] = 0;
  __syncthreads();
  const int64_t end = static_cast<int64_t>(tokens.tile_end[tile]) * active;
  for (int64_t p = static_cast<int64_t>(tokens.tile_begin[tile]) * active + threadIdx.x; p < end;
       p += kSortingThreads) {
    const uint32_t at = position[p];
    atomicAdd(by_position + at / 4, 1u << (at % 4 * 8));
  }
  __syncthreads();
  const int codeword = tokens.tile_codeword[tile];
  const int32_t* list_row = lists.row + codeword * lists.length;
  for (int w = threadIdx.x; w < words; w += kSortingThreads) {
    const uint32_t counts = by_position[w];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const uint32_t c = counts >> (8 * b) & 0xffu;
      if (c == 0) continue;
      atomicMax(home + list_row[w * 4 + b], c << 16 | (static_cast<uint32_t>(codeword) & 0xffffu));
    }
  }
}

/// The sort's keys and values: codeword + 1 of rows that were selected, else 0; the row.
__global__ void __launch_bounds__(kSortingThreads)
    home_keys_kernel(uint32_t* __restrict__ home, int rows, int32_t* __restrict__ row) {
  const int r = static_cast<int>(blockIdx.x) * kSortingThreads + static_cast<int>(threadIdx.x);
  if (r >= rows) return;
  const uint32_t h = home[r];
  home[r] = h == 0 ? 0 : (h & 0xffffu) + 1;
  row[r] = r;
}

__global__ void __launch_bounds__(kSortingThreads)
    ranks_kernel(const int32_t* __restrict__ row, int rows, int32_t* __restrict__ rank) {
  const int i = static_cast<int>(blockIdx.x) * kSortingThreads + static_cast<int>(threadIdx.x);
  if (i < rows) rank[row[i]] = i;
}

unsigned blocks_for(int64_t size) {
  return static_cast<unsigned>((size + kSortingThreads - 1) / kSortingThreads);
}

}  // namespace

// Returns the rows in the order of their ranks.
const int32_t* DevicePairBundles::rank_rows(const CodewordTokens& tokens, const DeviceLists& lists,
                                            const uint16_t* position, int64_t active, int64_t rows,
                                            cudaStream_t stream) {
  AIRMOE_CHECK(lists.length <= 65536, "lists of {} experts: at most 65,536", lists.length);
  for (int i = 0; i < 2; ++i) {
    home_[i].ensure(rows);
    row_[i].ensure(rows);
  }
  rank_.ensure(rows);
  AIRMOE_CUDA(cudaMemsetAsync(home_[0].data(), 0, static_cast<std::size_t>(rows) * sizeof(uint32_t),
                              stream));
  const int bytes = static_cast<int>((lists.length + 3) / 4 * 4);
  if (bytes > 48 * 1024) {
    AIRMOE_CUDA(cudaFuncSetAttribute(find_homes_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     bytes));
  }
  find_homes_kernel<<<static_cast<unsigned>(tokens.tile_limit), kSortingThreads,
                      static_cast<std::size_t>(bytes), stream>>>(
      tokens, lists, position, static_cast<int>(active), home_[0].data());
  AIRMOE_CUDA_LAUNCHED();
  home_keys_kernel<<<blocks_for(rows), kSortingThreads, 0, stream>>>(
      home_[0].data(), static_cast<int>(rows), row_[0].data());
  AIRMOE_CUDA_LAUNCHED();
  cub::DoubleBuffer<uint32_t> keys(home_[0].data(), home_[1].data());
  cub::DoubleBuffer<int32_t> values(row_[0].data(), row_[1].data());
  sort_by_key(keys, values, rows, 0, std::min<int64_t>(tokens.codewords, 65536) + 1, scratch_,
              stream);
  ranks_kernel<<<blocks_for(rows), kSortingThreads, 0, stream>>>(
      values.Current(), static_cast<int>(rows), rank_.data());
  AIRMOE_CUDA_LAUNCHED();
  return values.Current();
}

void DevicePairBundles::build(const CodewordTokens& tokens, const DeviceLists& lists,
                              const uint16_t* position, int64_t active, int64_t rows,
                              cudaStream_t stream, int64_t slice) {
  check_pair_count(tokens, active, rows);
  constexpr int kShift = std::bit_width(static_cast<unsigned>(kBundleRows)) - 1;
  slices_.clear();
  if (tokens.tokens * active == 0) {
    slices_.push_back({.rows = rows, .active = active});
    return;
  }
  const int32_t* const row = rank_rows(tokens, lists, position, active, rows, stream);
  make_keys(tokens, lists, position, active, rank_.data(), key_, pair_, stream);
  const int64_t bundles = (rows + kBundleRows - 1) / kBundleRows;
  sort_slices(tokens, active, slice, kShift, rows, bundles, key_, pair_, offset_, scratch_, stream,
              [&](int64_t size, const int32_t* pair, const int32_t* rank, const int32_t* offset) {
                slices_.push_back({rows, size, active, pair, rank, row, offset, tokens.token});
              });
}

}  // namespace airmoe::cuda
