// Selection with exact products and any shape: one kernel scores tiles of tokens against pieces of
// their list and leaves the keys in device memory, a second one selects, a warp per token. In
// passes over the places, so that the keys need bounded memory.

#include <algorithm>

#include <cuda_bf16.h>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/score_exact.cuh"
#include "router/cuda/src/select_arguments.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{128} << 20;
constexpr int kMostWarps = 8;
constexpr int kGap = 4;

// The places of a pass. Keys of place p are row p - first of `keys`.
struct Pass {
  int first, end;
  int64_t words;  // of a row
  uint32_t* keys;
};

template <class T>
__global__ void __launch_bounds__(kExactThreads)
    score_kernel(const SelectArguments<T> a, const Pass pass) {
  __shared__ ExactStage<T> stage;
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int begin = max(a.tokens.tile_begin[tile], pass.first);
  const int count = min(a.tokens.tile_end[tile], pass.end) - begin;
  if (count <= 0) return;
  const int32_t* rows = a.lists.row + a.tokens.tile_codeword[tile] * a.lists.length;
  const int length = static_cast<int>(a.lists.length);
  const int first = static_cast<int>(blockIdx.y) * kExactRows;
  for (int r = static_cast<int>(threadIdx.x); r < kExactTokens + kExactRows; r += kExactThreads) {
    const int candidate = first + r - kExactTokens;
    if (r < kExactTokens) {
      stage.row[r] = r < count ? a.tokens.token[begin + r] : -1;
    } else {
      stage.row[r] = candidate < length ? rows[candidate] : -1;
    }
  }
  __syncthreads();
  float score[8][4];
  exact_scores(stage, a.hidden, a.unit, a.d, score);
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int t = 8 * warp + i;
    if (t >= count) break;
    uint32_t* row = pass.keys + (begin + t - pass.first) * pass.words;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int candidate = first + lane + 32 * j;
      if (candidate < length) row[candidate] = FloatKeys::key(score[i][j]);
    }
  }
}

// With kShared a warp copies its token's keys to shared memory, lanes kGap words apart.
template <class T, bool kShared>
__global__ void __launch_bounds__(32 * kMostWarps)
    select_kernel(const SelectArguments<T> a, const Pass pass, int warps) {
  extern __shared__ __align__(16) uint32_t shared[];
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int begin = max(a.tokens.tile_begin[tile], pass.first);
  const int end = min(a.tokens.tile_end[tile], pass.end);
  const int codeword = a.tokens.tile_codeword[tile];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int length = a.layout.length, capacity = list_capacity(a.active);
  const int words = kShared ? a.layout.words() : 0;
  uint16_t* const list = reinterpret_cast<uint16_t*>(shared + warps * words) + warp * capacity;
  for (int place = begin + warp; place < end; place += warps) {
    uint32_t* const row = pass.keys + (place - pass.first) * pass.words;
    const FloatKeys keys;
    const Selection selection = a.selection(codeword, place);
    const airmoe::cuda::JitterKey* jitter = a.jittered ? &a.jitter : nullptr;
    if constexpr (kShared) {
      uint32_t* const mine = shared + warp * words;
      for (int i = 4 * lane; i < 1024 * a.layout.blocks; i += 128) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (i + 3 < length) {
          v = *reinterpret_cast<const uint4*>(row + i);
        } else {
          if (i < length) v.x = row[i];
          if (i + 1 < length) v.y = row[i + 1];
          if (i + 2 < length) v.z = row[i + 2];
        }
        *reinterpret_cast<uint4*>(mine + i + a.layout.lane_of(i) * kGap) = v;
      }
      __syncwarp();
      WarpSelect<FloatKeys>(keys, a.layout, mine, list, capacity).run(selection, jitter);
      __syncwarp();
    } else {
      for (int i = length + lane; i < 1024 * a.layout.blocks; i += 32) row[i] = 0;
      __syncwarp();
      WarpSelect<FloatKeys>(keys, a.layout, row, list, capacity).run(selection, jitter);
    }
  }
}

template <class T, bool kShared>
void launch_select(const SelectArguments<T>& a, const Pass& pass, int warps, int64_t bytes,
                   cudaStream_t stream) {
  AIRMOE_CUDA(cudaFuncSetAttribute(select_kernel<T, kShared>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)));
  select_kernel<T, kShared>
      <<<static_cast<unsigned>(a.tokens.tile_limit), static_cast<unsigned>(32 * warps),
         static_cast<unsigned>(bytes), stream>>>(a, pass, warps);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void select_exactly(const SelectArguments<T>& arguments, SelectWorkspace& workspace,
                    cudaStream_t stream) {
  SelectArguments<T> a = arguments;
  const int length = static_cast<int>(a.lists.length);
  const RowLayout spread = RowLayout::of(length, FloatKeys::kBlockWords, kGap);
  const int64_t list_bytes = int64_t{2} * list_capacity(a.active);
  const int64_t warp_bytes = int64_t{4} * spread.words() + list_bytes;
  const int64_t room = airmoe::cuda::device_properties().shared_bytes_per_block;
  // Two blocks on a multiprocessor where that leaves four warps to each.
  const int64_t half = room / 2 / warp_bytes;
  const int warps = static_cast<int>(
      std::min<int64_t>(kMostWarps, half >= kMostWarps / 2 ? half : room / warp_bytes));
  const bool in_shared = warps > 0;
  a.layout = in_shared ? spread : RowLayout::of(length, FloatKeys::kBlockWords, 0);

  const int64_t words = int64_t{1024} * a.layout.blocks;
  const int64_t places =
      std::min(a.tokens.tokens, std::max<int64_t>(kWorkspaceBytes / (4 * words), 32));
  workspace.keys.ensure(places * words);
  const dim3 grid(static_cast<unsigned>(a.tokens.tile_limit),
                  static_cast<unsigned>((length + kExactRows - 1) / kExactRows));
  for (int64_t first = 0; first < a.tokens.tokens; first += places) {
    const Pass pass{static_cast<int>(first),
                    static_cast<int>(std::min(first + places, a.tokens.tokens)), words,
                    workspace.keys.data()};
    score_kernel<T><<<grid, kExactThreads, 0, stream>>>(a, pass);
    AIRMOE_CUDA_LAUNCHED();
    if (in_shared) {
      launch_select<T, true>(a, pass, warps, warps * warp_bytes, stream);
    } else {
      launch_select<T, false>(a, pass, kMostWarps, kMostWarps * list_bytes, stream);
    }
  }
}

template void select_exactly(const SelectArguments<float>&, SelectWorkspace&, cudaStream_t);
template void select_exactly(const SelectArguments<__nv_bfloat16>&, SelectWorkspace&, cudaStream_t);

}  // namespace airmoe::router::cuda
