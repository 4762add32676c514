// Selection in bf16: a block scores a tile of tokens against the list of their codeword on tensor
// cores, leaves the scores as 15-bit keys in shared memory, and then each warp selects for its
// tokens.

#include <cuda_bf16.h>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/score_tile.cuh"
#include "router/cuda/src/select_arguments.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kNTiles = 4;  // 32 candidates at a time: one block of keys
constexpr int kGap = 4;     // words, see RowLayout and token_words()

// Words from one token's keys to the next one's: eight rows of four words fill all banks.
__host__ __device__ int token_words(const RowLayout& layout) {
  return layout.words() + kGap;
}

// Bytes of shared memory, in order: keys; their scales; tokens, later the lists of the warps.
struct SharedPlan {
  int64_t scales, tokens, total;

  __host__ __device__ SharedPlan(const RowLayout& layout, int count, int64_t d, int active) {
    scales = int64_t{4} * count * token_words(layout);
    tokens = scales + count * static_cast<int64_t>(sizeof(FixedKeys));
    const int64_t staged = count * token_stride(d);
    const int64_t lists = int64_t{2} * kWarps * list_capacity(active);
    total = tokens + (staged > lists ? staged : lists);
  }
};

template <int kMTiles>
__global__ void __launch_bounds__(32 * kWarps, 1)
    select_tile_kernel(const SelectArguments<__nv_bfloat16> a) {
  constexpr int kTokens = 16 * kMTiles;
  extern __shared__ __align__(16) char shared[];
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int begin = a.tokens.tile_begin[tile] + static_cast<int>(blockIdx.y) * kTokens;
  const int count = min(a.tokens.tile_end[tile] - begin, kTokens);
  if (count <= 0) return;
  const int codeword = a.tokens.tile_codeword[tile];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const SharedPlan plan(a.layout, kTokens, a.d, a.active);
  const int stride = static_cast<int>(token_stride(a.d)), words = token_words(a.layout);
  uint32_t* const keys = reinterpret_cast<uint32_t*>(shared);
  FixedKeys* const scales = reinterpret_cast<FixedKeys*>(shared + plan.scales);
  char* const staged = shared + plan.tokens;

  for (int t = warp; t < kTokens; t += kWarps) {
    const __nv_bfloat16* source =
        t < count ? a.hidden + static_cast<int64_t>(a.tokens.token[begin + t]) * a.d : nullptr;
    float squares = stage_token(source, a.d, staged + t * stride);
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    // Unit vectors in bf16 may be a little longer than 1.
    const float bound = sqrtf(squares) * 1.01f + (a.jittered ? a.jitter.stddev * 4.5f : 0.0f);
    if (lane == 0) scales[t] = FixedKeys::of_bound(bound);
  }
  const int length = a.layout.length, groups = (length + 31) / 32;
  // Blocks of keys behind the last candidates are empty.
  for (int block = groups + warp; block < 32 * a.layout.blocks; block += kWarps) {
    const int owner = block / a.layout.blocks;
    uint32_t* at = keys + owner * a.layout.lane_words +
                   (block - owner * a.layout.blocks) * FixedKeys::kBlockWords;
    for (int i = lane; i < kTokens * FixedKeys::kBlockWords; i += 32) {
      at[i / FixedKeys::kBlockWords * words + i % FixedKeys::kBlockWords] = 0;
    }
  }
  __syncthreads();

  const int32_t* rows = a.lists.row + codeword * a.lists.length;
  float per_unit[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
    per_unit[m][0] = scales[16 * m + (lane >> 2)].per_unit;
    per_unit[m][1] = scales[16 * m + 8 + (lane >> 2)].per_unit;
  }
  // Row n of a group's n-tile j is candidate 16 (n % 2) + 4 j + n / 2, so that the two sums that a
  // lane holds of a token are the two keys of a word.
  score_groups<kMTiles, kNTiles>(
      staged, (count + 15) / 16, a.d, warp, kWarps, groups, a.unit,
      [&](int group, int i) {
        const int candidate = group * 32 + (i & 1) * 16 + i / 8 * 4 + (i & 7) / 2;
        return __ldg(rows + min(candidate, length - 1));
      },
      [&](int group, const float(&sum)[kMTiles][kNTiles][4]) {
        const int owner = group / a.layout.blocks;
        uint32_t* at = keys + owner * a.layout.lane_words +
                       (group - owner * a.layout.blocks) * FixedKeys::kBlockWords + (lane & 3) +
                       (lane >> 2) * words;
        const bool whole = group * 32 + 32 <= length;
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
          for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              uint32_t word = __byte_perm(
                  FixedKeys::low_half(sum[m][j][2 * half], per_unit[m][half]),
                  FixedKeys::low_half(sum[m][j][2 * half + 1], per_unit[m][half]), 0x5410);
              if (!whole) {
                const int candidate = group * 32 + 4 * j + (lane & 3);
                if (candidate >= length) word &= 0xFFFF0000u;
                if (candidate + 16 >= length) word &= 0x0000FFFFu;
              }
              at[(16 * m + 8 * half) * words + 4 * j] = word;
            }
          }
        }
      });
  __syncthreads();

  const int capacity = list_capacity(a.active);
  uint16_t* const list = reinterpret_cast<uint16_t*>(staged) + warp * capacity;
  for (int t = warp; t < count; t += kWarps) {
    WarpSelect<FixedKeys> select(scales[t], a.layout, keys + t * words, list, capacity);
    select.run(a.selection(codeword, begin + t), a.jittered ? &a.jitter : nullptr);
  }
}

template <int kMTiles>
bool try_select(const SelectArguments<__nv_bfloat16>& arguments, cudaStream_t stream) {
  constexpr int kTokens = 16 * kMTiles;
  const SharedPlan plan(arguments.layout, kTokens, arguments.d, arguments.active);
  if (plan.total > airmoe::cuda::device_properties().shared_bytes_per_block) return false;
  AIRMOE_CUDA(cudaFuncSetAttribute(select_tile_kernel<kMTiles>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(plan.total)));
  const dim3 grid(static_cast<unsigned>(arguments.tokens.tile_limit),
                  airmoe::cuda::kTileTokens / kTokens);
  select_tile_kernel<kMTiles>
      <<<grid, 32 * kWarps, static_cast<unsigned>(plan.total), stream>>>(arguments);
  AIRMOE_CUDA_LAUNCHED();
  return true;
}

}  // namespace

bool select_in_tiles(const SelectArguments<__nv_bfloat16>& arguments, cudaStream_t stream) {
  SelectArguments<__nv_bfloat16> a = arguments;
  a.layout = RowLayout::of(static_cast<int>(a.lists.length), FixedKeys::kBlockWords, kGap);
  return try_select<2>(a, stream) || try_select<1>(a, stream);
}

}  // namespace airmoe::router::cuda
