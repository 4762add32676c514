// Scores of tiles of tokens against pieces of their list, with the rounding of the host.

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/keys.cuh"
#include "router/cuda/src/score_exact.cuh"
#include "router/cuda/src/select_pass.cuh"

namespace airmoe::router::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kExactThreads)
    score_exact_kernel(const SelectRequest a, const T* hidden, const T* unit,
                       const SelectPass pass) {
  __shared__ ExactStage<T> stage;
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int begin = max(a.tokens.tile_begin[tile], pass.first);
  const int count = min(a.tokens.tile_end[tile], pass.end) - begin;
  if (count <= 0) return;
  const int codeword = a.tokens.tile_codeword[tile];
  const int32_t* rows = a.lists.row + codeword * a.lists.length;
  const int length = static_cast<int>(a.lists.length), complete = (length + 31) / 32 * 32;
  const int first = static_cast<int>(blockIdx.y) * kExactRows;
  for (int r = static_cast<int>(threadIdx.x); r < kExactTokens + kExactRows; r += kExactThreads) {
    const int candidate = first + r - kExactTokens;
    if (r < kExactTokens) {
      stage.row[r] = r < count ? a.tokens.token[begin + r] : -1;
      if (r < count && first == 0) pass.codeword[begin + r - pass.first] = codeword;
    } else {
      stage.row[r] = candidate < length ? rows[candidate] : -1;
    }
  }
  __syncthreads();
  float score[8][4];
  exact_scores(stage, hidden, unit, a.d, score);
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int t = 8 * warp + i;
    if (t >= count) break;
    uint32_t* row = pass.keys + (begin + t - pass.first) * pass.words;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int candidate = first + lane + 32 * j;
      if (candidate < complete) {
        row[candidate] = candidate < length ? FloatKeys::key(score[i][j]) : 0;
      }
    }
  }
}

}  // namespace

template <class T>
void score_exact(const SelectRequest& request, const T* hidden, const T* unit,
                 const SelectPass& pass, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(request.tokens.tile_limit),
                  static_cast<unsigned>((request.lists.length + kExactRows - 1) / kExactRows));
  score_exact_kernel<T><<<grid, kExactThreads, 0, stream>>>(request, hidden, unit, pass);
  AIRMOE_CUDA_LAUNCHED();
}

template void score_exact(const SelectRequest&, const float*, const float*, const SelectPass&,
                          cudaStream_t);
template void score_exact(const SelectRequest&, const __nv_bfloat16*, const __nv_bfloat16*,
                          const SelectPass&, cudaStream_t);

}  // namespace airmoe::router::cuda
