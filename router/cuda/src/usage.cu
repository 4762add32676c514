// One block per tile: the pairs of a tile lie side by side and share one list.

#include <cub/block/block_reduce.cuh>

#include "router/cuda/usage.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::kTileTokens;

constexpr int kThreads = 256;
constexpr int kUnroll = 8;
static_assert(kTileTokens < 256, "counts of a tile are bytes");

struct Tile {
  int64_t pair_begin = 0, pairs = 0;
  const int32_t* id = nullptr;  // of the tile's list
};

__device__ __forceinline__ Tile tile_of(const DeviceLists& lists, const CodewordTokens& tokens,
                                        int64_t active) {
  const int begin = tokens.tile_begin[blockIdx.x];
  return {begin * active, (tokens.tile_end[blockIdx.x] - begin) * active,
          lists.id + tokens.tile_codeword[blockIdx.x] * lists.length};
}

/// f(index of the pair within the tile), loads of several pairs under way at once.
template <class Load, class Use>
__device__ __forceinline__ void for_each_pair(int64_t pairs, const Load& load, const Use& use) {
  for (int64_t base = threadIdx.x; base < pairs; base += kUnroll * kThreads) {
    decltype(load(base)) loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kThreads;
      if (i < pairs) loaded[u] = load(i);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kThreads;
      if (i < pairs) use(i, loaded[u]);
    }
  }
}

/// Counts by position first, four bytes to a word, so that few additions go to global memory.
__global__ void __launch_bounds__(kThreads)
    count_kernel(DeviceLists lists, CodewordTokens tokens, SelectedPairs pairs, int32_t* count,
                 int64_t* window) {
  extern __shared__ uint32_t by_position[];
  if (static_cast<int>(blockIdx.x) >= *tokens.tiles) return;
  const Tile tile = tile_of(lists, tokens, pairs.active);
  const int words = static_cast<int>((lists.length + 3) / 4);
  for (int w = threadIdx.x; w < words; w += kThreads) by_position[w] = 0;
  __syncthreads();
  const uint16_t* position = pairs.position + tile.pair_begin;
  for_each_pair(
      tile.pairs, [&](int64_t i) { return position[i]; },
      [&](int64_t, uint32_t p) { atomicAdd(by_position + p / 4, 1u << (p % 4 * 8)); });
  __syncthreads();
  for (int w = threadIdx.x; w < words; w += kThreads) {
    const uint32_t counts = by_position[w];
    if (counts == 0) continue;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const uint32_t c = counts >> (8 * b) & 0xFFu;
      if (c == 0) continue;
      const int32_t e = tile.id[w * 4 + b];
      atomicAdd(count + e, static_cast<int32_t>(c));
      if (window != nullptr) {
        atomicAdd(reinterpret_cast<unsigned long long*>(window) + e, c);
      }
    }
  }
}

/// The counts of the list's experts, in shared memory where a tile has pairs enough to pay for it.
class ListCounts {
 public:
  __device__ ListCounts(const int32_t* count, const Tile& tile, int64_t length, int32_t* shared)
      : count_(count), id_(tile.id), shared_(tile.pairs * 2 >= length ? shared : nullptr) {
    if (shared_ == nullptr) return;
    for (int i = threadIdx.x; i < length; i += kThreads) shared_[i] = count[tile.id[i]];
    __syncthreads();
  }
  __device__ int32_t operator[](int position) const {
    return shared_ != nullptr ? shared_[position] : count_[id_[position]];
  }

 private:
  const int32_t* count_;
  const int32_t* id_;
  int32_t* shared_;
};

struct PairValue {
  uint16_t position;
  float value;
};

__global__ void __launch_bounds__(kThreads)
    loss_kernel(DeviceLists lists, CodewordTokens tokens, SelectedPairs pairs, const int32_t* count,
                bool use_shared, double* partial) {
  extern __shared__ int32_t list_counts[];
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ typename Reduce::TempStorage scratch;
  if (static_cast<int>(blockIdx.x) >= *tokens.tiles) return;
  const Tile tile = tile_of(lists, tokens, pairs.active);
  const ListCounts counts(count, tile, lists.length, use_shared ? list_counts : nullptr);
  double sum = 0.0;
  for_each_pair(
      tile.pairs,
      [&](int64_t i) {
        return PairValue{pairs.position[tile.pair_begin + i], pairs.gate[tile.pair_begin + i]};
      },
      [&](int64_t, const PairValue& pair) {
        sum += static_cast<double>(counts[pair.position]) * static_cast<double>(pair.value);
      });
  sum = Reduce(scratch).Sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    loss_total_kernel(const double* partial, const int32_t* tiles, double slope, double* value) {
  using Reduce = cub::BlockReduce<double, kThreads>;
  __shared__ typename Reduce::TempStorage scratch;
  double sum = 0.0;
  for (int i = threadIdx.x; i < *tiles; i += kThreads) sum += partial[i];
  sum = Reduce(scratch).Sum(sum);
  if (threadIdx.x == 0) *value += slope * sum;
}

__global__ void __launch_bounds__(kThreads)
    gradient_kernel(DeviceLists lists, CodewordTokens tokens, SelectedPairs pairs,
                    const int32_t* count, bool use_shared, float slope, float* d_gate) {
  extern __shared__ int32_t list_counts[];
  if (static_cast<int>(blockIdx.x) >= *tokens.tiles) return;
  const Tile tile = tile_of(lists, tokens, pairs.active);
  const ListCounts counts(count, tile, lists.length, use_shared ? list_counts : nullptr);
  for_each_pair(
      tile.pairs,
      [&](int64_t i) {
        return PairValue{pairs.position[tile.pair_begin + i], d_gate[tile.pair_begin + i]};
      },
      [&](int64_t i, const PairValue& pair) {
        const float share = __fmul_rn(slope, static_cast<float>(counts[pair.position]));
        d_gate[tile.pair_begin + i] = __fadd_rn(pair.value, share);
      });
}

constexpr int64_t kMostSharedCounts = 8192;  // 32 KiB: several blocks still fit

/// Bytes for ListCounts; 0 where the lists are too long.
int64_t list_count_bytes(const DeviceLists& lists) {
  return lists.length <= kMostSharedCounts ? lists.length * int64_t{sizeof(int32_t)} : 0;
}

}  // namespace

void count_selections(const DeviceLists& lists, const CodewordTokens& tokens,
                      const SelectedPairs& pairs, int64_t experts, int32_t* count, int64_t* window,
                      cudaStream_t stream) {
  AIRMOE_CUDA(
      cudaMemsetAsync(count, 0, static_cast<std::size_t>(experts) * sizeof(int32_t), stream));
  if (tokens.tokens == 0) return;
  AIRMOE_CHECK(lists.length <= 65536, "lists of {} experts: at most 65,536", lists.length);
  const int64_t bytes = (lists.length + 3) / 4 * 4;
  if (bytes > 48 * 1024) {
    AIRMOE_CUDA(cudaFuncSetAttribute(count_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
  }
  count_kernel<<<static_cast<unsigned>(tokens.tile_limit), kThreads,
                 static_cast<std::size_t>(bytes), stream>>>(lists, tokens, pairs, count, window);
  AIRMOE_CUDA_LAUNCHED();
}

void add_balance_loss(const DeviceLists& lists, const CodewordTokens& tokens,
                      const SelectedPairs& pairs, const int32_t* count, double slope, double* value,
                      BalanceWorkspace& workspace, cudaStream_t stream) {
  if (tokens.tokens == 0) return;
  workspace.partial.ensure(tokens.tile_limit);
  const int64_t bytes = list_count_bytes(lists);
  loss_kernel<<<static_cast<unsigned>(tokens.tile_limit), kThreads, static_cast<std::size_t>(bytes),
                stream>>>(lists, tokens, pairs, count, bytes > 0, workspace.partial.data());
  AIRMOE_CUDA_LAUNCHED();
  loss_total_kernel<<<1, kThreads, 0, stream>>>(workspace.partial.data(), tokens.tiles, slope,
                                                value);
  AIRMOE_CUDA_LAUNCHED();
}

void add_balance_gradient(const DeviceLists& lists, const CodewordTokens& tokens,
                          const SelectedPairs& pairs, const int32_t* count, float slope,
                          float* d_gate, cudaStream_t stream) {
  if (tokens.tokens == 0) return;
  const int64_t bytes = list_count_bytes(lists);
  gradient_kernel<<<static_cast<unsigned>(tokens.tile_limit), kThreads,
                    static_cast<std::size_t>(bytes), stream>>>(lists, tokens, pairs, count,
                                                               bytes > 0, slope, d_gate);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::router::cuda
