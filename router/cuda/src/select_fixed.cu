// Scores of tiles of tokens against pieces of their list on tensor cores, as 15-bit keys. All tiles
// do the same piece at about the same time, the pieces in ascending order; lists are in ascending
// expert id, so that blocks which run together read a narrow range of the table of unit centroids,
// and the second-level cache holds it.

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/keys.cuh"
#include "router/cuda/src/score_tile.cuh"
#include "router/cuda/src/select_pass.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kNTiles = 4;  // 32 candidates at a time: one block of keys
constexpr int kSteps = 1;
static_assert(FixedKeys::kBlockWords == 4 * kNTiles);

template <int kMTiles>
int64_t shared_bytes(int64_t d) {
  return 16 * kMTiles * (token_stride<kSteps>(d) + static_cast<int64_t>(sizeof(float)));
}

template <int kMTiles, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps, 2)
    score_kernel(const SelectRequest a, const __nv_bfloat16* hidden, const __nv_bfloat16* unit,
                 int groups_per_block, const SelectPass pass) {
  constexpr int kTokens = 16 * kMTiles;
  extern __shared__ __align__(16) char staged[];
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int begin =
      max(a.tokens.tile_begin[tile] + static_cast<int>(blockIdx.z) * kTokens, pass.first);
  const int end = min(min(a.tokens.tile_end[tile], pass.end),
                      a.tokens.tile_begin[tile] + static_cast<int>(blockIdx.z + 1) * kTokens);
  const int count = end - begin;
  if (count <= 0) return;
  const int codeword = a.tokens.tile_codeword[tile];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int stride = static_cast<int>(token_stride<kSteps>(a.d));
  float* const scales = reinterpret_cast<float*>(staged + kTokens * stride);

  const int length = static_cast<int>(a.lists.length);
  const int first = static_cast<int>(blockIdx.y) * groups_per_block;
  const int groups = min(first + groups_per_block, (length + 31) / 32);
  const int32_t* rows = a.lists.row + codeword * a.lists.length;
  const auto stage = [&] {
    for (int t = warp; t < kTokens; t += kWarps) {
      const __nv_bfloat16* source =
          t < count ? hidden + static_cast<int64_t>(a.tokens.token[begin + t]) * a.d : nullptr;
      float squares = stage_token<kSteps>(source, a.d, staged + t * stride);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
      const float bound = score_bound(a, squares);
      if (lane == 0) scales[t] = FixedKeys::of_bound(bound).half_per_bound();
      if (lane == 0 && t < count && blockIdx.y == 0) {
        pass.bound[begin + t - pass.first] = bound;
        pass.codeword[begin + t - pass.first] = codeword;
      }
    }
    __syncthreads();
  };
  // Row n of a group's n-tile j is candidate 16 (n % 2) + 4 (n / 2) + j, so that a lane holds four
  // words of keys in a row.
  score_groups<kMTiles, kNTiles, kSteps, kWhole>(
      staged, (count + 15) / 16, a.d, first + warp, kWarps, groups, unit,
      [&](int group, int i) {
        const int candidate = group * 32 + (i & 1) * 16 + (i & 7) / 2 * 4 + i / 8;
        return __ldg(rows + min(candidate, length - 1));
      },
      stage,
      [&](int group, const float(&sum)[kMTiles][kNTiles][4]) {
        uint32_t* const at = pass.keys + (begin - pass.first) * pass.words +
                             group * FixedKeys::kBlockWords + 4 * (lane & 3);
        const int left = length - group * 32 - 4 * (lane & 3);  // candidates from here on
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int t = 16 * m + 8 * half + (lane >> 2);
            if (t >= count) continue;
            const float scale = scales[t];
            uint32_t word[kNTiles];
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
              word[j] = __byte_perm(FixedKeys::low_half(sum[m][j][2 * half], scale),
                                    FixedKeys::low_half(sum[m][j][2 * half + 1], scale), 0x5410);
            }
            if (left < 20) {
#pragma unroll
              for (int j = 0; j < kNTiles; ++j) {
                if (j >= left) word[j] &= 0xFFFF0000u;
                if (j + 16 >= left) word[j] &= 0x0000FFFFu;
              }
            }
            *reinterpret_cast<uint4*>(at + t * pass.words) =
                make_uint4(word[0], word[1], word[2], word[3]);
          }
        }
      });
}

template <int kMTiles, bool kWhole>
void launch(const SelectRequest& request, const __nv_bfloat16* hidden, const __nv_bfloat16* unit,
            const SelectPass& pass, cudaStream_t stream) {
  const auto bytes = static_cast<int>(shared_bytes<kMTiles>(request.d));
  AIRMOE_CUDA(cudaFuncSetAttribute(score_kernel<kMTiles, kWhole>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int64_t groups = (request.lists.length + 31) / 32;
  // Pieces of 512 candidates stage the tokens less often; where rows are long, pieces of 256 read a
  // range of the table that the cache still holds. Measured with 65,536 experts.
  const int groups_per_block = request.d <= 256 ? 2 * kWarps : kWarps;
  const dim3 grid(static_cast<unsigned>(request.tokens.tile_limit),
                  static_cast<unsigned>((groups + groups_per_block - 1) / groups_per_block),
                  2 / kMTiles);
  score_kernel<kMTiles, kWhole><<<grid, 32 * kWarps, static_cast<unsigned>(bytes), stream>>>(
      request, hidden, unit, groups_per_block, pass);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

bool can_score_fixed(int64_t d) {
  return shared_bytes<1>(d) <= airmoe::cuda::device_properties().shared_bytes_per_block;
}

void score_fixed(const SelectRequest& request, const __nv_bfloat16* hidden,
                 const __nv_bfloat16* unit, const SelectPass& pass, cudaStream_t stream) {
  const bool whole = request.d % (64 * kSteps) == 0;
  const int64_t room = airmoe::cuda::device_properties().shared_bytes_per_block;
  if (shared_bytes<2>(request.d) <= room) {
    (whole ? launch<2, true> : launch<2, false>)(request, hidden, unit, pass, stream);
  } else {
    launch<1, false>(request, hidden, unit, pass, stream);
  }
}

}  // namespace airmoe::router::cuda
