#include <algorithm>
#include <limits>

#include <cub/block/block_scan.cuh>

#include "comm/base/cuda/pair_tiles.hpp"

namespace airmoe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;  // pairs that one thread handles in order: they share words
constexpr int64_t kSharedLimit = 100 << 10;

__device__ __forceinline__ uint32_t bits_below(uint32_t bit) {
  return (1u << bit) - 1;
}

/// Up to kRun neighbouring pairs of a place.
struct Run {
  int count;
  uint32_t packed[kRun / 2];
  __device__ __forceinline__ int operator[](int i) const {
    return static_cast<int>(packed[i / 2] >> (i % 2 * 16) & 0xffff);
  }
};

__device__ __forceinline__ Run load_run(const uint16_t* from, int active, int k0) {
  Run run{min(kRun, active - k0), {}};
  if (active % kRun == 0) {
    const uint4 x = __ldg(reinterpret_cast<const uint4*>(from + k0));
    run.packed[0] = x.x, run.packed[1] = x.y, run.packed[2] = x.z, run.packed[3] = x.w;
    return run;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < run.count) run.packed[i / 2] |= static_cast<uint32_t>(from[k0 + i]) << (i % 2 * 16);
  }
  return run;
}

struct Output {
  int32_t* used;
  int32_t* row;
  uint32_t* mask;
  uint16_t* first;
};

/// One tile per block.
/// @param mask_in_shared  the tile's mask is collected in shared memory, else where it belongs
__global__ void __launch_bounds__(kThreads, 6)
    pair_tiles_kernel(CodewordTokens tokens, DeviceLists lists,
                      const uint16_t* __restrict__ position, int active, int width,
                      bool mask_in_shared, Output out) {
  const int tile = blockIdx.x;
  if (tile >= *tokens.tiles) return;
  extern __shared__ uint32_t shared[];
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  __shared__ int total;
  const int list_words = static_cast<int>((lists.length + 31) / 32);
  uint32_t* const bits = shared;               // used candidates of the list
  uint32_t* const rank = shared + list_words;  // used candidates before each word of it
  const int64_t at = static_cast<int64_t>(tile) * width;
  uint32_t* const mask = mask_in_shared ? rank + list_words : out.mask + at;
  const int begin = tokens.tile_begin[tile];
  const int count = tokens.tile_end[tile] - begin;
  const int runs = (active + kRun - 1) / kRun;

  for (int w = threadIdx.x; w < list_words; w += kThreads) bits[w] = 0;
  __syncthreads();
  for (int item = threadIdx.x; item < count * runs; item += kThreads) {
    const int t = item / runs, k0 = item % runs * kRun;
    const Run run = load_run(position + static_cast<int64_t>(begin + t) * active, active, k0);
    int word = run[0] / 32;
    uint32_t set = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i >= run.count) break;
      const int p = run[i];
      if (p / 32 != word) {
        atomicOr(bits + word, set);
        word = p / 32;
        set = 0;
      }
      set |= 1u << (p % 32);
    }
    atomicOr(bits + word, set);
  }
  __syncthreads();

  const int share = (list_words + kThreads - 1) / kThreads;
  const int from_word = min(list_words, static_cast<int>(threadIdx.x) * share);
  const int to_word = min(list_words, from_word + share);
  int sum = 0, before = 0;
  for (int w = from_word; w < to_word; ++w) sum += __popc(bits[w]);
  Scan(scan).ExclusiveSum(sum, before);
  if (threadIdx.x == kThreads - 1) total = before + sum;
  for (int w = from_word; w < to_word; ++w) {
    rank[w] = before;
    before += __popc(bits[w]);
  }
  __syncthreads();

  const int used = total;
  const int padded = (used + kTileChunk - 1) / kTileChunk * kTileChunk;
  const int32_t* list_row = lists.row + tokens.tile_codeword[tile] * lists.length;
  for (int p = threadIdx.x; p < lists.length; p += kThreads) {
    const uint32_t word = bits[p / 32];
    if (word >> (p % 32) & 1)
      out.row[at + rank[p / 32] + __popc(word & bits_below(p % 32))] = list_row[p];
  }
  for (int c = used + threadIdx.x; c < padded; c += kThreads) out.row[at + c] = -1;
  for (int i = threadIdx.x; i < padded; i += kThreads) mask[i] = 0;
  if (threadIdx.x == 0) out.used[tile] = used;
  __syncthreads();

  const auto number = [&](int p) {  // of the candidate at list position p among the used ones
    return static_cast<int>(rank[p / 32]) + __popc(bits[p / 32] & bits_below(p % 32));
  };
  for (int item = threadIdx.x; item < count * runs; item += kThreads) {
    const int t = item / runs, k0 = item % runs * kRun;
    const uint16_t* from = position + static_cast<int64_t>(begin + t) * active;
    const Run run = load_run(from, active, k0);
    int word = k0 == 0 ? -1 : number(from[k0 - 1]) / 32;  // first[] is written up to it
    uint32_t set = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i >= run.count) break;
      const int c = number(run[i]);
      if (c / 32 != word) {
        if (set != 0) atomicOr(mask + word * 32 + t, set);
        set = 0;
        while (word < c / 32) out.first[at + ++word * 32 + t] = static_cast<uint16_t>(k0 + i);
      }
      set |= 1u << (c % 32);
    }
    atomicOr(mask + word * 32 + t, set);
    if (k0 + run.count == active) {
      while (++word < padded / 32) out.first[at + word * 32 + t] = static_cast<uint16_t>(active);
    }
  }
  if (!mask_in_shared) return;
  __syncthreads();
  for (int i = threadIdx.x; i < padded; i += kThreads) out.mask[at + i] = mask[i];
}

}  // namespace

void DevicePairTiles::build(const CodewordTokens& tokens, const DeviceLists& lists,
                            const uint16_t* position, int64_t active, cudaStream_t stream) {
  AIRMOE_CHECK(active >= 1 && active <= lists.length && active < 65536,
               "{} pairs per token from lists of {}", active, lists.length);
  AIRMOE_CHECK(tokens.tokens * active < std::numeric_limits<int32_t>::max(),
               "{} tokens with {} pairs each in one micro-batch are too many for a device",
               tokens.tokens, active);
  const int64_t most = std::min(lists.length, kTileTokens * active);
  const int64_t width = (most + kTileChunk - 1) / kTileChunk * kTileChunk;
  used_.ensure(tokens.tile_limit);
  row_.ensure(tokens.tile_limit * width);
  mask_.ensure(tokens.tile_limit * width);
  first_.ensure(tokens.tile_limit * width);
  view_ = {tokens,       lists,       position,     active,       width,
           used_.data(), row_.data(), mask_.data(), first_.data()};
  if (tokens.tokens == 0) return;
  const int64_t bitmap_bytes = (lists.length + 31) / 32 * 8;
  const int64_t mask_bytes = width * 4;
  const bool mask_in_shared = bitmap_bytes + mask_bytes <= kSharedLimit;
  const int64_t bytes = bitmap_bytes + (mask_in_shared ? mask_bytes : 0);
  AIRMOE_CUDA(cudaFuncSetAttribute(pair_tiles_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kSharedLimit));
  pair_tiles_kernel<<<static_cast<unsigned>(tokens.tile_limit), kThreads,
                      static_cast<std::size_t>(bytes), stream>>>(
      tokens, lists, position, static_cast<int>(active), static_cast<int>(width), mask_in_shared,
      {used_.data(), row_.data(), mask_.data(), first_.data()});
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::cuda
