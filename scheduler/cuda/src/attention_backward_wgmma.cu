// Backward of causal attention in bf16 on Hopper, heads of up to 64 columns: blocks for queries and
// blocks for keys in one grid, as in attention_backward_bf16.cu, each one warp group with 64 rows.

#include "comm/base/cuda/wgmma.cuh"
#include "scheduler/cuda/src/attention_tiles.cuh"
#include "scheduler/cuda/src/block_order.hpp"

namespace airmoe::scheduler::cuda::attention {
namespace {

constexpr int kDim = 64;
constexpr int kRows = 64;   // of a block, and of the other kind per step
constexpr int kStages = 3;  // steps in shared memory: of products under way, this one, the next
constexpr int kTileBytes = kRows * kDim * 2;
constexpr int kTermBytes = kRows * static_cast<int>(sizeof(float2));
constexpr int kTermsAt = (2 + 2 * kStages) * kTileBytes;
constexpr int kBytes = kTermsAt + kStages * kTermBytes + 1024;

#if defined(AIRMOE_HAS_WGMMA)

using airmoe::cuda::add_rows;
using airmoe::cuda::begin_products;
using airmoe::cuda::multiply_tiles;
using airmoe::cuda::pin;
using airmoe::cuda::publish_copies;
using airmoe::cuda::wait_products;
using Sums = float[kDim / 8][4];

/// Shared memory from a multiple of 1,024 on: the own two tiles, then stages of two tiles of
/// others, then the others' row terms.
struct Layout {
  unsigned char* data;
  uint32_t base;

  __device__ explicit Layout(unsigned char* shared)
      : data(shared + -shared_address(shared) % 1024), base(shared_address(data)) {}
  __device__ uint32_t own(int which) const { return base + which * kTileBytes; }
  __device__ uint32_t other(int step, int which) const {
    return base + (2 + 2 * (step % kStages) + which) * kTileBytes;
  }
  __device__ uint32_t terms_at(int step) const { return kTermsAt + step % kStages * kTermBytes; }
};

__device__ __forceinline__ void pack(uint32_t (&a)[kRows / 16][4], const Sums& products) {
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) as_a(a[i], products[2 * i], products[2 * i + 1]);
}
__device__ __forceinline__ void load_own(uint32_t (&a)[kDim / 16][4], uint32_t tile, int row) {
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) load_a<kDim>(a[i], tile, row, i);
}
__device__ __forceinline__ void store_own(const Sums& sums, float factor, unsigned char* tile,
                                          Bf16* to, int64_t ld, int valid, int head_dim) {
  float all[1][kDim / 8][4];
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) all[0][n][i] = sums[n][i];
  }
  store_rows<kDim>(all, factor, tile, threadIdx.x / 32 * 16, to, ld, valid, head_dim);
}

/// d_q of rows [begin, begin + kRows).
__device__ __forceinline__ void query_block(const Inputs<Bf16>& in, const Gradients<Bf16>& g,
                                            int column, int begin, const Layout& at) {
  const int sequence = column / in.heads, head = column % in.heads;
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  const Bf16* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const Bf16* v = in.v + first * in.ld_v + head / in.group * in.head_dim;
  const int steps = begin / kRows + 1;
  const auto load_keys = [&](int step) {
    const int key = step * kRows, valid = in.context - key;
    load_tile<kDim, kRows>(at.other(step, 0), k + key * in.ld_k, in.ld_k, valid, in.head_dim);
    load_tile<kDim, kRows>(at.other(step, 1), v + key * in.ld_v, in.ld_v, valid, in.head_dim);
    airmoe::cuda::commit_copies();
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = begin + 16 * warp + lane / 4;
  const float factor = in.scale * kLog2E;
  float2 terms[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half;
    terms[half] = r < in.context ? g.row_terms[static_cast<int64_t>(column) * in.context + r]
                                 : make_float2(0.0f, 0.0f);
  }
  load_tile<kDim, kRows>(at.own(0), in.q + (first + begin) * in.ld_q + head * in.head_dim, in.ld_q,
                         in.context - begin, in.head_dim);
  load_tile<kDim, kRows>(at.own(1), g.d_out + (first + begin) * ld_out + head * in.head_dim, ld_out,
                         in.context - begin, in.head_dim);
  load_keys(0);
  uint32_t q[kDim / 16][4], d_out[kDim / 16][4], d_s[kRows / 16][4];
  Sums d_q = {}, p, d_p;
  const auto await_keys = [&](int step) {
    airmoe::cuda::wait_copies<0>();
    publish_copies();
    __syncthreads();
    if (step + 1 < steps) load_keys(step + 1);
  };
  await_keys(0);
  load_own(q, at.own(0), 16 * warp);
  load_own(d_out, at.own(1), 16 * warp);
  for (int step = 0; step < steps; ++step) {
    begin_products();
    multiply_tiles(p, q, at.other(step, 0));
    multiply_tiles(d_p, d_out, at.other(step, 1));
    wait_products<1>();
    pin(p);
    const bool hidden = step + 1 == steps;
    const int key = step * kRows + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = power_of_two(fmaf(p[n][i], factor, -terms[i / 2].x));
        if (hidden && key + 8 * n + i % 2 > row + 8 * (i / 2)) p[n][i] = 0.0f;
      }
    }
    wait_products<0>();
    pin(d_p);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= d_p[n][i] - terms[i / 2].y;
    }
    pack(d_s, p);
    begin_products();
    add_rows(d_q, d_s, at.other(step, 0));
    if (step + 1 < steps) await_keys(step + 1);
    wait_products<0>();
    pin(d_q);
  }
  wait_products<0>();
  pin(d_q);
  store_own(d_q, in.scale, at.data, g.d_q + (first + begin) * g.ld_dq + head * in.head_dim, g.ld_dq,
            in.context - begin, in.head_dim);
}

/// A part's gradients of keys or values, in fp32.
__device__ __forceinline__ void store_partial(const Sums& sums, float factor, float* to, int64_t ld,
                                              int valid, int head_dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = static_cast<int>(threadIdx.x) / 32 * 16 + 8 * half + lane / 4;
    if (r >= valid) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      if (8 * n >= head_dim) continue;
      *reinterpret_cast<float2*>(to + r * ld + 8 * n + 2 * (lane % 4)) =
          make_float2(factor * sums[n][2 * half], factor * sums[n][2 * half + 1]);
    }
  }
}

/// d_k and d_v of keys [begin, begin + kRows) from one part of the group's query heads.
__device__ __forceinline__ void key_block(const Inputs<Bf16>& in, const Gradients<Bf16>& g,
                                          int column, int begin, const Layout& at) {
  const int part = column % g.parts, kv_head = column / g.parts % in.kv_heads;
  const int sequence = column / g.parts / in.kv_heads;
  const int heads = in.group / g.parts;  // of this part
  const int first_head = kv_head * in.group + part * heads;
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  const int first_step = begin / kRows;  // earlier queries do not see these keys
  const int steps_per_head = (in.context + kRows - 1) / kRows - first_step;
  const int steps = heads * steps_per_head;
  const auto load_queries = [&](int step) {
    const int head = first_head + step / steps_per_head;
    const int row = (first_step + step % steps_per_head) * kRows, valid = in.context - row;
    load_tile<kDim, kRows>(at.other(step, 0), in.q + (first + row) * in.ld_q + head * in.head_dim,
                           in.ld_q, valid, in.head_dim);
    load_tile<kDim, kRows>(at.other(step, 1), g.d_out + (first + row) * ld_out + head * in.head_dim,
                           ld_out, valid, in.head_dim);
    const int r = static_cast<int>(threadIdx.x);
    if (r < kRows) {
      const float2* terms =
          g.row_terms + (static_cast<int64_t>(sequence) * in.heads + head) * in.context + row;
      copy_async_8(at.base + at.terms_at(step) + r * 8, r < valid ? terms + r : terms, r < valid);
    }
    airmoe::cuda::commit_copies();
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float factor = in.scale * kLog2E;
  load_tile<kDim, kRows>(at.own(0), in.k + (first + begin) * in.ld_k + kv_head * in.head_dim,
                         in.ld_k, in.context - begin, in.head_dim);
  load_tile<kDim, kRows>(at.own(1), in.v + (first + begin) * in.ld_v + kv_head * in.head_dim,
                         in.ld_v, in.context - begin, in.head_dim);
  load_queries(0);
  uint32_t weights[kRows / 16][4], d_s[kRows / 16][4];
  Sums d_k = {}, d_v = {}, p, d_p;
  for (int step = 0; step < steps; ++step) {
    airmoe::cuda::wait_copies<0>();
    publish_copies();
    __syncthreads();
    if (step + 1 < steps) load_queries(step + 1);
    wait_products<0>();  // of the step before
    begin_products();
    multiply_tiles(p, at.own(0), at.other(step, 0));
    multiply_tiles(d_p, at.own(1), at.other(step, 1));
    const float4* terms = reinterpret_cast<const float4*>(at.data + at.terms_at(step)) + lane % 4;
    wait_products<1>();
    pin(p);
    const bool hidden = step % steps_per_head == 0;
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float4 t = terms[4 * n];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = power_of_two(fmaf(p[n][i], factor, i % 2 == 0 ? -t.x : -t.z));
        // Both tiles begin at the same row there.
        if (hidden && 16 * warp + 8 * (i / 2) + lane / 4 > 8 * n + 2 * (lane % 4) + i % 2) {
          p[n][i] = 0.0f;
        }
      }
    }
    pack(weights, p);
    begin_products();
    add_rows(d_v, weights, at.other(step, 1));
    wait_products<1>();
    pin(d_p);
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float4 t = terms[4 * n];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[n][i] *= d_p[n][i] - (i % 2 == 0 ? t.y : t.w);
    }
    pack(d_s, p);
    begin_products();
    add_rows(d_k, d_s, at.other(step, 0));
  }
  wait_products<0>();
  pin(d_k);
  pin(d_v);

  const int64_t row = first + begin;
  const int valid = in.context - begin;
  if (g.parts == 1) {
    __syncthreads();  // warps multiplied each other's rows of the own tiles
    store_own(d_k, in.scale, at.data, g.d_k + row * g.ld_dk + kv_head * in.head_dim, g.ld_dk, valid,
              in.head_dim);
    store_own(d_v, 1.0f, at.data + kTileBytes, g.d_v + row * g.ld_dv + kv_head * in.head_dim,
              g.ld_dv, valid, in.head_dim);
  } else {
    const int64_t ld = static_cast<int64_t>(in.kv_heads) * in.head_dim;
    float* to = g.partial + 2 * part * g.rows * ld + row * ld + kv_head * in.head_dim;
    store_partial(d_k, in.scale, to, ld, valid, in.head_dim);
    store_partial(d_v, 1.0f, to + g.rows * ld, ld, valid, in.head_dim);
  }
}

#endif

/// A column of keys is followed by those of the query heads of its part; the most work comes first.
__global__ __launch_bounds__(kThreads, 3) void backward_kernel(Inputs<Bf16> in, Gradients<Bf16> g,
                                                               BlockOrder order) {
#if defined(AIRMOE_HAS_WGMMA)
  extern __shared__ __align__(1024) unsigned char shared[];
  const Layout at(shared);
  const int heads = in.group / g.parts;
  const auto [column, level] = order.place_of(blockIdx.x);
  const int part = column / (1 + heads), head = column % (1 + heads);
  if (head == 0) {
    key_block(in, g, part, level * kRows, at);
  } else {
    query_block(in, g, part * heads + head - 1, (order.levels - 1 - level) * kRows, at);
  }
#endif
}

}  // namespace

void launch_backward_wgmma(const Inputs<Bf16>& in, int64_t sequences, const Gradients<Bf16>& g,
                           cudaStream_t stream) {
  AIRMOE_CUDA(
      cudaFuncSetAttribute(backward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int64_t parts = sequences * in.kv_heads * g.parts;
  const BlockOrder order(parts + sequences * in.heads, (in.context + kRows - 1) / kRows);
  backward_kernel<<<order.blocks(), kThreads, kBytes, stream>>>(in, g, order);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda::attention
