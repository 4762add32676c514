// Scores in fp32: every element is one chain of fused multiply-adds over k, as panel_scores().

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/list_append.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kStep = 8;                // elements of k per stage; divides every d
constexpr int kStride = kListTile + 4;  // floats from one k to the next

/// Where column c of the experts lies: a thread's eight are two groups of four, and the groups of
/// neighbouring threads lie side by side.
__device__ __forceinline__ int column(int c) {
  return (c >> 2 & 1) * 64 + (c >> 3) * 4 + (c & 3);
}

template <bool kJitter>
__global__ void __launch_bounds__(kListThreads, 2) scores_fp32_kernel(ScoreTask<float> task) {
  __shared__ __align__(16) float a[2][kStep][kStride];
  __shared__ __align__(16) float b[2][kStep][kStride];
  __shared__ AppendShared shared;
  const int rows = *task.rows;
  const int first_row = blockIdx.x * kListTile;
  if (first_row >= rows) return;
  start_append(task, first_row, rows, shared);

  const int tid = threadIdx.x, dim = static_cast<int>(task.dim);
  const int loaded = tid >> 1, part = (tid & 1) * 4;
  const int row = first_row + loaded;
  const int64_t index = blockIdx.y * int64_t{kListTile} + loaded;
  const int64_t expert = (index >> 3) * 8 * task.stride + task.offset + (index & 7);
  const float* a_row =
      row < rows ? task.codebook + int64_t{task.codeword[row]} * dim + part : nullptr;
  const float* b_row = expert < task.experts ? task.unit + expert * dim + part : nullptr;
  const auto load = [](const float* from, int k) {
    return from == nullptr ? float4{} : *reinterpret_cast<const float4*>(from + k);
  };
  const auto store = [&](int buffer, float4 x, float4 y) {
    const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[buffer][part + i][loaded] = xs[i];
      b[buffer][part + i][column(loaded)] = ys[i];
    }
  };

  const int tx = tid & 15, ty = tid >> 4;  // eight experts, eight codewords
  float score[8][8] = {};
  store(0, load(a_row, 0), load(b_row, 0));
  __syncthreads();
  for (int k = 0, buffer = 0; k < dim; k += kStep, buffer ^= 1) {
    const bool more = k + kStep < dim;
    float4 next_a{}, next_b{};
    if (more) {
      next_a = load(a_row, k + kStep);
      next_b = load(b_row, k + kStep);
    }
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      float x[8], y[8];
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(&a[buffer][i][ty * 8]);
      *reinterpret_cast<float4*>(x + 4) =
          *reinterpret_cast<const float4*>(&a[buffer][i][ty * 8 + 4]);
      *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(&b[buffer][i][tx * 4]);
      *reinterpret_cast<float4*>(y + 4) =
          *reinterpret_cast<const float4*>(&b[buffer][i][64 + tx * 4]);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int j = 0; j < 8; ++j) score[r][j] = __fmaf_rn(x[r], y[j], score[r][j]);
      }
    }
    if (more) store(buffer ^ 1, next_a, next_b);
    __syncthreads();
  }
  const int64_t first_index = blockIdx.y * int64_t{kListTile} + tx * 8;
  append_scores<kJitter>(
      score, [&](int r) { return ty * 8 + r; }, first_row, first_index, task, shared);
}

}  // namespace

void append_scores(const ScoreTask<float>& task, int64_t row_limit, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((row_limit + kListTile - 1) / kListTile),
                  static_cast<unsigned>((task.indices + kListTile - 1) / kListTile));
  const auto kernel = task.jittered ? scores_fp32_kernel<true> : scores_fp32_kernel<false>;
  kernel<<<grid, kListThreads, 0, stream>>>(task);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::router::cuda
