#pragma once
// What the backward kernels share: which keys and query heads a column of tiles has, and where
// gradients of parts of the query heads go. Device code only.

#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda::attention {

/// A key head of a sequence, with one part of the query heads that read it.
struct KeyColumn {
  int sequence, head, part;
  int heads, first_head;  // query heads of the part

  template <class T>
  __device__ KeyColumn(const Inputs<T>& in, int parts, int column)
      : sequence(column / parts / in.kv_heads),
        head(column / parts % in.kv_heads),
        part(column % parts),
        heads(in.group / parts),
        first_head(head * in.group + part * heads) {}
};

/// The row terms of a head of a sequence.
template <class T>
__device__ __forceinline__ const float2* terms_of(const Inputs<T>& in, const Gradients<T>& g,
                                                  int sequence, int head) {
  return g.row_terms + (static_cast<int64_t>(sequence) * in.heads + head) * g.pitch;
}

/// Where one part's gradients of the keys and values of a head go, from `row` of all rows on; `ld`
/// elements between rows.
struct PartialRows {
  float *d_k, *d_v;
  int64_t ld;

  template <class T>
  __device__ PartialRows(const Inputs<T>& in, const Gradients<T>& g, int head, int part,
                         int64_t row)
      : ld(static_cast<int64_t>(in.kv_heads) * in.head_dim) {
    d_k = g.partial + (2 * part * g.rows + row) * ld + head * in.head_dim;
    d_v = d_k + g.rows * ld;
  }
};

/// Sums as C of mma_bf16, times `factor`, in fp32: this thread's rows `row` and row + 8 of those
/// below `valid`.
template <int kColumns>
__device__ __forceinline__ void store_partial(const float (&sums)[kColumns][4], float factor,
                                              float* to, int64_t ld, int row, int valid,
                                              int head_dim) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half;
    if (r >= valid) continue;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (8 * n >= head_dim) continue;
      *reinterpret_cast<float2*>(to + r * ld + 8 * n + 2 * (threadIdx.x % 4)) =
          make_float2(factor * sums[n][2 * half], factor * sums[n][2 * half + 1]);
    }
  }
}

}  // namespace airmoe::scheduler::cuda::attention
