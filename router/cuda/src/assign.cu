// Codewords of tokens: a block holds its tokens in shared memory and runs over all codewords; the
// largest score of a token stays in registers.

#include <type_traits>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/assign.hpp"
#include "router/cuda/src/assign_wgmma.hpp"
#include "router/cuda/src/score_exact.cuh"
#include "router/cuda/src/score_tile.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kNTiles = 2, kSteps = 2;

struct Best {
  float score;
  int32_t index;
};

// The larger score; of equal ones the smaller index.
__device__ __forceinline__ Best better(Best a, Best b) {
  const bool second = b.score > a.score || (b.score == a.score && b.index < a.index);
  return second ? b : a;
}
__device__ __forceinline__ Best from_lane(Best best, int lane_mask) {
  return {__shfl_xor_sync(~0u, best.score, lane_mask), __shfl_xor_sync(~0u, best.index, lane_mask)};
}

// -------------------------------------------------------------------------------- bf16

template <int kMTiles>
constexpr int64_t shared_bytes(int64_t d) {
  return 16 * kMTiles * (token_stride<kSteps>(d) + kWarps * static_cast<int64_t>(sizeof(Best)));
}

template <int kMTiles>
__global__ void __launch_bounds__(32 * kWarps, 1)
    assign_kernel(const __nv_bfloat16* hidden, const __nv_bfloat16* codebook, int n, int d,
                  int codewords, int32_t* codeword) {
  constexpr int kTokens = 16 * kMTiles;
  extern __shared__ __align__(16) char shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int stride = static_cast<int>(token_stride<kSteps>(d));
  Best* table = reinterpret_cast<Best*>(shared + kTokens * stride);  // [kWarps, kTokens]
  const int first = static_cast<int>(blockIdx.x) * kTokens;
  const int count = min(kTokens, n - first);
  for (int t = warp; t < kTokens; t += kWarps) {
    stage_token<kSteps>(t < count ? hidden + static_cast<int64_t>(first + t) * d : nullptr, d,
                        shared + t * stride);
  }

  Best best[kMTiles][2];
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) best[m][0] = best[m][1] = {-INFINITY, 0};
  score_groups<kMTiles, kNTiles, kSteps, false>(
      shared, (count + 15) / 16, d, warp, kWarps, (codewords + 8 * kNTiles - 1) / (8 * kNTiles),
      codebook, [&](int group, int i) { return min(group * 8 * kNTiles + i, codewords - 1); },
      [] { __syncthreads(); },
      [&](int group, const float(&sum)[kMTiles][kNTiles][4]) {
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
          for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int g = group * 8 * kNTiles + 8 * j + 2 * (lane & 3) + (i & 1);
              Best& here = best[m][i >> 1];
              if (g < codewords && sum[m][j][i] > here.score) here = {sum[m][j][i], g};
            }
          }
        }
      });
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Best all = best[m][half];
      all = better(all, from_lane(all, 1));
      all = better(all, from_lane(all, 2));
      if ((lane & 3) == 0) table[warp * kTokens + 16 * m + 8 * half + (lane >> 2)] = all;
    }
  }
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  if (t < count) {
    Best all = table[t];
    for (int w = 1; w < kWarps; ++w) all = better(all, table[w * kTokens + t]);
    codeword[first + t] = all.index;
  }
}

// Whether it could run: the tokens must fit into shared memory.
template <int kMTiles>
bool try_assign(const __nv_bfloat16* hidden, const __nv_bfloat16* codebook, int64_t n, int64_t d,
                int64_t codewords, int32_t* codeword, cudaStream_t stream) {
  const int64_t bytes = shared_bytes<kMTiles>(d);
  if (bytes > airmoe::cuda::device_properties().shared_bytes_per_block) return false;
  AIRMOE_CUDA(cudaFuncSetAttribute(assign_kernel<kMTiles>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)));
  const auto blocks = static_cast<unsigned>((n + 16 * kMTiles - 1) / (16 * kMTiles));
  assign_kernel<kMTiles><<<blocks, 32 * kWarps, static_cast<unsigned>(bytes), stream>>>(
      hidden, codebook, static_cast<int>(n), static_cast<int>(d), static_cast<int>(codewords),
      codeword);
  AIRMOE_CUDA_LAUNCHED();
  return true;
}

// -------------------------------------------------------------------------------- exact

template <class T>
__global__ void __launch_bounds__(kExactThreads)
    assign_exact_kernel(const T* hidden, const T* codebook, int n, int d, int codewords,
                        int32_t* codeword) {
  __shared__ ExactStage<T> stage;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = static_cast<int>(blockIdx.x) * kExactTokens;
  Best best[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) best[i] = {-INFINITY, 0};
  for (int begin = 0; begin < codewords; begin += kExactRows) {
    for (int r = static_cast<int>(threadIdx.x); r < kExactTokens + kExactRows; r += kExactThreads) {
      const int index = r < kExactTokens ? first + r : begin + r - kExactTokens;
      stage.row[r] = index < (r < kExactTokens ? n : codewords) ? index : -1;
    }
    __syncthreads();
    float score[8][4];
    exact_scores(stage, hidden, codebook, d, score);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int g = begin + lane + 32 * j;
        if (g < codewords && score[i][j] > best[i].score) best[i] = {score[i][j], g};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    for (int mask = 16; mask > 0; mask >>= 1) best[i] = better(best[i], from_lane(best[i], mask));
    const int t = first + 8 * warp + i;
    if (lane == 0 && t < n) codeword[t] = best[i].index;
  }
}

}  // namespace

template <class T>
void assign_codewords(const T* hidden, const T* codebook, int64_t n, int64_t d, int64_t codewords,
                      int32_t* codeword, cudaStream_t stream) {
  if (d < 8 || d % 8 != 0) {
    fail(ExitCode::usage, "--dim {}: kernels on a device need a multiple of 8", d);
  }
  AIRMOE_CHECK(codewords >= 1, "assign: no codewords");
  if (n == 0) return;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    // The more tokens a block has, the less it reads; but all multiprocessors should have some.
    const int64_t enough = airmoe::cuda::device_properties().multiprocessors * 3 / 4;
    const auto run = [&](auto assign) {
      return assign(hidden, codebook, n, d, codewords, codeword, stream);
    };
    if (n > 32 * (enough - 1) && run(try_assign_wgmma)) return;
    if (n > 64 * (enough - 1) && run(try_assign<4>)) return;
    if (n > 32 * (enough - 1) && run(try_assign<2>)) return;
    if (run(try_assign<1>)) return;
  }
  const auto blocks = static_cast<unsigned>((n + kExactTokens - 1) / kExactTokens);
  assign_exact_kernel<T><<<blocks, kExactThreads, 0, stream>>>(
      hidden, codebook, static_cast<int>(n), static_cast<int>(d), static_cast<int>(codewords),
      codeword);
  AIRMOE_CUDA_LAUNCHED();
}

template void assign_codewords(const float*, const float*, int64_t, int64_t, int64_t, int32_t*,
                               cudaStream_t);
template void assign_codewords(const __nv_bfloat16*, const __nv_bfloat16*, int64_t, int64_t,
                               int64_t, int32_t*, cudaStream_t);

}  // namespace airmoe::router::cuda
