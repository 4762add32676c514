#pragma once
// The k-th largest of a set of keys with one block: radix selection on the bits in which the keys
// differ, eleven at a time, until few are left, which are compared with each other.

#include <cstdint>

#include <cub/block/block_scan.cuh>

namespace airmoe::router::cuda {

/// Where the best k end: all keys above `key`, and the first `equal` of those equal to it.
struct Cut {
  uint32_t key;
  uint32_t equal;  ///< 2^32 - 1: all of them
};

template <int kThreads>
class BlockSelect {
  static constexpr int kDigitBits = 11, kBins = 1 << kDigitBits, kPerThread = kBins / kThreads;
  static constexpr uint32_t kFew = 64;
  static_assert(kBins % kThreads == 0 && kFew <= kThreads);
  using Scan = cub::BlockScan<uint32_t, kThreads>;

 public:
  struct Shared {
    uint32_t histogram[kBins];
    typename Scan::TempStorage scan;
    uint32_t low, high;
    uint32_t bin, above, inside;
    uint32_t few[kFew], found;
    Cut cut;
  };

  /// key_at(i), i < count, is read once per pass. 1 <= k <= count. All threads of the block; all
  /// get the result, after which a barrier must come before `shared` is used again.
  template <class KeyAt>
  static __device__ Cut kth_largest(const KeyAt& key_at, int count, uint32_t k, Shared& shared) {
    return kth_largest(key_at, key_at, count, k, shared);
  }
  /// The same with another way to read a key for the first time.
  template <class FirstKeyAt, class KeyAt>
  static __device__ Cut kth_largest(const FirstKeyAt& first_key_at, const KeyAt& key_at, int count,
                                    uint32_t k, Shared& shared) {
    if (threadIdx.x == 0) {
      shared.low = 0xFFFFFFFFu;
      shared.high = 0;
    }
    __syncthreads();
    uint32_t low = 0xFFFFFFFFu, high = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t key = first_key_at(i);
      low = min(low, key);
      high = max(high, key);
    }
    low = __reduce_min_sync(0xFFFFFFFFu, low);
    high = __reduce_max_sync(0xFFFFFFFFu, high);
    if (threadIdx.x % 32 == 0) {
      atomicMin(&shared.low, low);
      atomicMax(&shared.high, high);
    }
    __syncthreads();
    low = shared.low;
    int bits = 32 - __clz(static_cast<int>(shared.high - low));
    uint32_t prefix = 0;  // of key - low, above the lowest `bits` bits
    while (bits > 0) {
      const int width = min(bits, kDigitBits);
      bits -= width;
      const uint32_t mask = (1u << width) - 1;
      for (int b = threadIdx.x; b < kBins; b += kThreads) shared.histogram[b] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < count; i += kThreads) {
        const uint32_t offset = (key_at(i) - low) >> bits;
        if (offset >> width == prefix) atomicAdd(shared.histogram + (offset & mask), 1u);
      }
      __syncthreads();
      find_bin(k, shared);
      k -= shared.above;
      prefix = prefix << width | shared.bin;
      const uint32_t inside = shared.inside;
      __syncthreads();
      if (inside == k) return {low + (prefix << bits), 0xFFFFFFFFu};
      if (bits > 0 && inside <= kFew) {
        const auto taken = [&](uint32_t key) { return (key - low) >> bits == prefix; };
        return kth_of_few(key_at, taken, count, inside, k, shared);
      }
    }
    return {low + prefix, k};
  }

  /// The k-th largest of the `few` keys that are `taken`.
  template <class KeyAt, class Taken>
  static __device__ Cut kth_of_few(const KeyAt& key_at, const Taken& taken, int count, uint32_t few,
                                   uint32_t k, Shared& shared) {
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t key = key_at(i);
      if (taken(key)) shared.few[atomicAdd(&shared.found, 1u)] = key;
    }
    __syncthreads();
    if (threadIdx.x < few) {
      const uint32_t mine = shared.few[threadIdx.x];
      uint32_t above = 0, equal = 0;
      for (uint32_t i = 0; i < few; ++i) {
        above += shared.few[i] > mine ? 1 : 0;
        equal += shared.few[i] == mine ? 1 : 0;
      }
      if (above < k && k <= above + equal) shared.cut = {mine, k - above};  // equal keys agree
    }
    __syncthreads();
    return shared.cut;
  }

  /// The largest bin such that it and those above it hold at least k. A barrier follows the
  /// caller's last use of what it found.
  static __device__ void find_bin(uint32_t k, Shared& shared) {
    uint32_t mine[kPerThread], sum = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      mine[i] = shared.histogram[kBins - 1 - (static_cast<int>(threadIdx.x) * kPerThread + i)];
      sum += mine[i];
    }
    uint32_t above;
    Scan(shared.scan).ExclusiveSum(sum, above);
    if (above < k && k <= above + sum) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        if (above < k && k <= above + mine[i]) {
          shared.bin = kBins - 1 - (static_cast<int>(threadIdx.x) * kPerThread + i);
          shared.above = above;
          shared.inside = mine[i];
        }
        above += mine[i];
      }
    }
    __syncthreads();
  }
};

}  // namespace airmoe::router::cuda
