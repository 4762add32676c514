// Stable counting sort in three kernels: counts per chunk of tokens, one scan over codewords and
// chunks, and the scatter. A chunk is the tokens of one block.

#include <algorithm>

#include <cub/block/block_scan.cuh>

#include "router/cuda/order.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::kTileTokens;

constexpr int64_t kSmallChunk = 256;
constexpr int64_t kLargeChunk = 1024;
constexpr int64_t kLargeFrom = 16384;          // tokens from which chunks are large
constexpr int64_t kSharedCounters = 48 << 10;  // bytes: codewords' counters in shared memory
constexpr int kScanThreads = 512;
constexpr int kBatch = 8;  // counts that a thread of the scan reads at once

// -------------------------------------------------------------------------------- kernels

// count[chunk, g]; in device memory they must have been zeroed.
__global__ void count_kernel(const int32_t* codeword, int n, int codewords, bool in_shared,
                             int32_t* count) {
  extern __shared__ int32_t shared_count[];
  count += int64_t{blockIdx.x} * codewords;
  const auto each_codeword = [&](auto visit) {
    for (int g = static_cast<int>(threadIdx.x); g < codewords; g += static_cast<int>(blockDim.x)) {
      visit(g);
    }
  };
  if (in_shared) {
    each_codeword([&](int g) { shared_count[g] = 0; });
    __syncthreads();
  }
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < n) atomicAdd((in_shared ? shared_count : count) + codeword[t], 1);
  if (in_shared) {
    __syncthreads();
    each_codeword([&](int g) { count[g] = shared_count[g]; });
  }
}

// Turns counts into the first place of each (chunk, codeword), and cuts the codewords into tiles.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(int chunks, int codewords, int32_t* count, int32_t* begin, int32_t* tiles,
                int32_t* tile_codeword, int32_t* tile_begin, int32_t* tile_end) {
  using Scan = cub::BlockScan<int2, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  const auto add = [](int2 a, int2 b) { return make_int2(a.x + b.x, a.y + b.y); };
  int2 carry = make_int2(0, 0);  // places and tiles of the codewords before
  for (int first = 0; first < codewords; first += kScanThreads) {
    const int g = first + static_cast<int>(threadIdx.x);
    int total = 0;
    if (g < codewords) {
#pragma unroll 8
      for (int chunk = 0; chunk < chunks; ++chunk) total += count[int64_t{chunk} * codewords + g];
    }
    const int cut = (total + kTileTokens - 1) / kTileTokens;
    int2 before, sum;
    Scan(storage).ExclusiveScan(make_int2(total, cut), before, make_int2(0, 0), add, sum);
    __syncthreads();
    if (g < codewords) {
      int place = carry.x + before.x;
      const int end = place + total;
      begin[g] = place;
      int tile = carry.y + before.y;
      for (int at = place; at < end; at += kTileTokens, ++tile) {
        tile_codeword[tile] = g;
        tile_begin[tile] = at;
        tile_end[tile] = min(at + kTileTokens, end);
      }
      for (int chunk = 0; chunk < chunks; chunk += kBatch) {
        int here[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (chunk + i < chunks) here[i] = count[int64_t{chunk + i} * codewords + g];
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (chunk + i < chunks) {
            count[int64_t{chunk + i} * codewords + g] = place;
            place += here[i];
          }
        }
      }
    }
    carry = add(carry, sum);
  }
  if (threadIdx.x == 0) {
    begin[codewords] = carry.x;
    *tiles = carry.y;
  }
}

// token[first place + rank] = t. Warps of a block take turns, so that ranks follow the tokens.
__global__ void scatter_kernel(const int32_t* codeword, int n, int codewords, bool in_shared,
                               int32_t* place, int32_t* token) {
  extern __shared__ int32_t shared_next[];
  int32_t* next = place + int64_t{blockIdx.x} * codewords;
  if (in_shared) {
    for (int g = static_cast<int>(threadIdx.x); g < codewords; g += blockDim.x) {
      shared_next[g] = next[g];
    }
    next = shared_next;
    __syncthreads();
  }
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = t < n ? codeword[t] : -1;
  const unsigned same = __match_any_sync(~0u, g);
  const int rank = __popc(same & ((1u << lane) - 1));
  for (int turn = 0; turn < static_cast<int>(blockDim.x >> 5); ++turn) {
    if (turn == warp) {
      int first = 0;
      if (g >= 0) first = next[g];
      __syncwarp();
      if (g >= 0) token[first + rank] = t;
      if (g >= 0 && rank == 0) next[g] = first + __popc(same);
    }
    __syncthreads();
  }
}

}  // namespace

// -------------------------------------------------------------------------------- launchers

void DeviceOrder::build(const int32_t* codeword, int64_t n, int64_t codewords,
                        cudaStream_t stream) {
  AIRMOE_CHECK(n >= 0 && codewords >= 1, "order: {} tokens, {} codewords", n, codewords);
  const int64_t limit = airmoe::cuda::max_tiles(n, codewords);
  const int64_t chunk = n < kLargeFrom ? kSmallChunk : kLargeChunk;
  const int64_t chunks = (n + chunk - 1) / chunk;
  token_.ensure(n);
  begin_.ensure(codewords + 1);
  tiles_.ensure(1 + 3 * limit);
  counts_.ensure(chunks * codewords);
  int32_t* tile = tiles_.data() + 1;
  const auto tokens = static_cast<int>(n), groups = static_cast<int>(codewords);
  const auto blocks = static_cast<unsigned>(chunks), threads = static_cast<unsigned>(chunk);
  const int64_t counter_bytes = codewords * static_cast<int64_t>(sizeof(int32_t));
  const bool in_shared = counter_bytes <= kSharedCounters;
  const unsigned shared = in_shared ? static_cast<unsigned>(counter_bytes) : 0;
  if (n > 0) {
    if (!in_shared) counts_.zero(stream);
    count_kernel<<<blocks, threads, shared, stream>>>(codeword, tokens, groups, in_shared,
                                                      counts_.data());
    AIRMOE_CUDA_LAUNCHED();
  }
  scan_kernel<<<1, kScanThreads, 0, stream>>>(static_cast<int>(chunks), groups, counts_.data(),
                                              begin_.data(), tiles_.data(), tile, tile + limit,
                                              tile + 2 * limit);
  AIRMOE_CUDA_LAUNCHED();
  if (n > 0) {
    scatter_kernel<<<blocks, threads, shared, stream>>>(codeword, tokens, groups, in_shared,
                                                        counts_.data(), token_.data());
    AIRMOE_CUDA_LAUNCHED();
  }
  view_ = {n,    codewords,    limit,           token_.data(), begin_.data(), tiles_.data(),
           tile, tile + limit, tile + 2 * limit};
}

}  // namespace airmoe::router::cuda
