#pragma once
// The running softmax of rows whose products lie in the C fragments of a warp: each thread has a
// part of two rows per 16, and four neighbouring threads share a row.

#include "scheduler/cuda/src/attention_tiles.cuh"

namespace airmoe::scheduler::cuda::attention {

/// A row's largest score so far, and this thread's part of the sum.
struct RunningRow {
  float top = -INFINITY, total = 0.0f;
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// Keys after a row's own are not seen. `key`, `row`: of products[0][0] of this thread.
template <int kColumns>
__device__ __forceinline__ void mask(float (&products)[kColumns][4], int key, int row) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (key + 8 * n + i % 2 > row + 8 * (i / 2)) products[n][i] = -INFINITY;
    }
  }
}

/// Products become probabilities relative to the new maxima; `shrink` is what sums so far must be
/// multiplied with.
template <int kColumns>
__device__ __forceinline__ void advance(float (&products)[kColumns][4], RunningRow (&rows)[2],
                                        float (&shrink)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    RunningRow& row = rows[half];
    float top = row.top;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      top = fmaxf(top, fmaxf(products[n][2 * half], products[n][2 * half + 1]));
    }
    top = quad_max(top);
    shrink[half] = power_of_two((row.top - top) * factor);
    const float shift = -top * factor;
    row.top = top;
    row.total *= shrink[half];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        products[n][i] = power_of_two(fmaf(products[n][i], factor, shift));
        row.total += products[n][i];
      }
    }
  }
}

/// Rows' sums times `shrink`, where that changes anything.
template <int kColumns>
__device__ __forceinline__ void rescale(float (&sums)[kColumns][4], const float (&shrink)[2]) {
  if (!__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] *= shrink[i / 2];
  }
}

/// Ends two rows: divides the sums by the totals and writes log_sum of those below `context`.
template <int kColumns>
__device__ __forceinline__ void finish_rows(float (&sums)[kColumns][4], const RunningRow (&rows)[2],
                                            float scale, float* log_sum, int row, int context) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(rows[half].total);
    const float inverse = 1.0f / total;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      sums[n][2 * half] *= inverse;
      sums[n][2 * half + 1] *= inverse;
    }
    if (threadIdx.x % 4 == 0 && row + 8 * half < context) {
      log_sum[row + 8 * half] = rows[half].top * scale + logf(total);
    }
  }
}

}  // namespace airmoe::scheduler::cuda::attention
