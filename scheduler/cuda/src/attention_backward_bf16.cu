// Backward of causal attention in bf16. One grid, two kinds of blocks: one has a tile of query rows
// and walks over their keys for d_q, the other a tile of keys and walks over the queries that see
// them for d_k and d_v. Both recompute the probabilities; nothing is added atomically.

#include "comm/base/cuda/wgmma.hpp"
#include "scheduler/cuda/src/attention_gradients.cuh"
#include "scheduler/cuda/src/attention_tiles.cuh"

namespace airmoe::scheduler::cuda::attention {
namespace {

constexpr int kOthers = 64;  // rows of the other kind per step, in two halves of kHalf
constexpr int kHalf = 32;

/// Rows of a block.
template <int kTiles>
constexpr int kRows = kWarps* kTiles * 16;

/// Shared memory: the own two tiles, twice two tiles of others, twice the others' row terms.
template <int kDim, int kTiles>
struct Layout {
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kOwnBytes = kRows<kTiles> * kRowBytes;
  static constexpr int kOtherBytes = kOthers * kRowBytes;
  static constexpr int kTermsAt = 2 * kOwnBytes + 4 * kOtherBytes;
  static constexpr int kBytes = kTermsAt + 2 * kOthers * static_cast<int>(sizeof(float2));

  uint32_t base;
  __device__ uint32_t own(int which) const { return base + which * kOwnBytes; }
  __device__ uint32_t other(int stage, int which) const {
    return base + 2 * kOwnBytes + (2 * stage + which) * kOtherBytes;
  }
  __device__ uint32_t terms(int stage) const {
    return base + kTermsAt + stage * kOthers * static_cast<int>(sizeof(float2));
  }
};

/// d_q of rows [begin, begin + kRows).
template <int kDim, int kTiles>
__device__ __forceinline__ void query_block(const Inputs<Bf16>& in, const Gradients<Bf16>& g,
                                            int column, int begin, unsigned char* shared) {
  constexpr bool kKept = kDim <= 64;
  const Layout<kDim, kTiles> at{shared_address(shared)};
  const int sequence = column / in.heads, head = column % in.heads;
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  const Bf16* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const Bf16* v = in.v + first * in.ld_v + head / in.group * in.head_dim;
  const auto load_keys = [&](int step) {
    const int key = step * kOthers;
    load_tile<kDim, kOthers>(at.other(step % 2, 0), k + key * in.ld_k, in.ld_k, in.context - key,
                             in.head_dim);
    load_tile<kDim, kOthers>(at.other(step % 2, 1), v + key * in.ld_v, in.ld_v, in.context - key,
                             in.head_dim);
    airmoe::cuda::commit_copies();
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own = warp * kTiles * 16;
  const int steps = (min(begin + kRows<kTiles>, in.context) + kOthers - 1) / kOthers;
  const float factor = in.scale * kLog2E;
  float2 terms[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = begin + own + 16 * m + 8 * half + lane / 4;
      terms[m][half] =
          row < in.context ? terms_of(in, g, sequence, head)[row] : make_float2(0.0f, 0.0f);
    }
  }
  load_tile<kDim, kRows<kTiles>>(at.own(0), in.q + (first + begin) * in.ld_q + head * in.head_dim,
                                 in.ld_q, in.context - begin, in.head_dim);
  load_tile<kDim, kRows<kTiles>>(at.own(1), g.d_out + (first + begin) * ld_out + head * in.head_dim,
                                 ld_out, in.context - begin, in.head_dim);
  load_keys(0);
  OwnRows<kDim, kTiles, kKept> q, d_out;
  float d_q[kTiles][kDim / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    airmoe::cuda::wait_copies<0>();
    __syncthreads();
    if (step + 1 < steps) load_keys(step + 1);
    if (step == 0) {
      q.load(at.own(0), own);
      d_out.load(at.own(1), own);
    }
#pragma unroll 1
    for (int part = 0; part < kOthers; part += kHalf) {
      const int key = step * kOthers + part;
      if (key > begin + own + kTiles * 16 - 1) break;
      float p[kTiles][kHalf / 8][4], d_p[kTiles][kHalf / 8][4];
      q.template multiply<kHalf / 8>(p, at.other(step % 2, 0), part);
      d_out.template multiply<kHalf / 8>(d_p, at.other(step % 2, 1), part);
      const bool hidden = key + kHalf - 1 > begin + own;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 t = terms[m][i / 2];
            float weight = power_of_two(fmaf(p[m][n][i], factor, -t.x));
            if (hidden && key + 8 * n + 2 * (lane % 4) + i % 2 >
                              begin + own + 16 * m + 8 * (i / 2) + lane / 4) {
              weight = 0.0f;
            }
            p[m][n][i] = weight * (d_p[m][n][i] - t.y);
          }
        }
      }
      uint32_t d_s[kTiles][2][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        as_a(d_s[m][0], p[m][0], p[m][1]);
        as_a(d_s[m][1], p[m][2], p[m][3]);
      }
      multiply_rows<kDim>(d_q, d_s, at.other(step % 2, 0), part);
    }
  }
  store_rows<kDim>(d_q, in.scale, shared, own,
                   g.d_q + (first + begin) * g.ld_dq + head * in.head_dim, g.ld_dq,
                   in.context - begin, in.head_dim);
}

/// d_k and d_v of keys [begin, begin + kRows) from one part of the group's query heads.
template <int kDim, int kTiles>
__device__ __forceinline__ void key_block(const Inputs<Bf16>& in, const Gradients<Bf16>& g,
                                          int column, int begin, unsigned char* shared) {
  const Layout<kDim, kTiles> at{shared_address(shared)};
  const KeyColumn c(in, g.parts, column);
  const int64_t first = static_cast<int64_t>(c.sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  const int first_step = begin / kOthers;  // earlier queries do not see these keys
  const int steps_per_head = (in.context + kOthers - 1) / kOthers - first_step;
  const int steps = c.heads * steps_per_head;
  const auto load_queries = [&](int step) {
    const int head = c.first_head + step / steps_per_head;
    const int row = (first_step + step % steps_per_head) * kOthers;
    const int stage = step % 2;
    load_tile<kDim, kOthers>(at.other(stage, 0),
                             in.q + (first + row) * in.ld_q + head * in.head_dim, in.ld_q,
                             in.context - row, in.head_dim);
    load_tile<kDim, kOthers>(at.other(stage, 1),
                             g.d_out + (first + row) * ld_out + head * in.head_dim, ld_out,
                             in.context - row, in.head_dim);
    if (threadIdx.x < kOthers) {
      const int r = row + static_cast<int>(threadIdx.x);
      const float2* terms = terms_of(in, g, c.sequence, head);
      copy_async_8(at.terms(stage) + threadIdx.x * 8, r < in.context ? terms + r : terms,
                   r < in.context);
    }
    airmoe::cuda::commit_copies();
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own = warp * kTiles * 16;
  const float factor = in.scale * kLog2E;
  load_tile<kDim, kRows<kTiles>>(at.own(0), in.k + (first + begin) * in.ld_k + c.head * in.head_dim,
                                 in.ld_k, in.context - begin, in.head_dim);
  load_tile<kDim, kRows<kTiles>>(at.own(1), in.v + (first + begin) * in.ld_v + c.head * in.head_dim,
                                 in.ld_v, in.context - begin, in.head_dim);
  load_queries(0);
  OwnRows<kDim, kTiles, false> k, v;  // registers are for the sums
  float d_k[kTiles][kDim / 8][4] = {}, d_v[kTiles][kDim / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    airmoe::cuda::wait_copies<0>();
    __syncthreads();
    if (step + 1 < steps) load_queries(step + 1);
    if (step == 0) {
      k.load(at.own(0), own);
      v.load(at.own(1), own);
    }
    const int stage = step % 2;
#pragma unroll 1
    for (int half = 0; half < kOthers; half += kHalf) {
      const int row = (first_step + step % steps_per_head) * kOthers + half;
      if (row + kHalf - 1 < begin + own || row >= in.context) continue;
      float p[kTiles][kHalf / 8][4];
      k.template multiply<kHalf / 8>(p, at.other(stage, 0), half);
      const bool hidden = row < begin + own + kTiles * 16 - 1;
      const float4* terms =
          reinterpret_cast<const float4*>(shared + (at.terms(stage) - at.base) + half * 8) +
          lane % 4;
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const float4 t = terms[4 * n];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            p[m][n][i] = power_of_two(fmaf(p[m][n][i], factor, i % 2 == 0 ? -t.x : -t.z));
            if (hidden && begin + own + 16 * m + 8 * (i / 2) + lane / 4 >
                              row + 8 * n + 2 * (lane % 4) + i % 2) {
              p[m][n][i] = 0.0f;
            }
          }
        }
      }
      uint32_t a[kTiles][2][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        as_a(a[m][0], p[m][0], p[m][1]);
        as_a(a[m][1], p[m][2], p[m][3]);
      }
      multiply_rows<kDim>(d_v, a, at.other(stage, 1), half);
      float d_p[kTiles][kHalf / 8][4];
      v.template multiply<kHalf / 8>(d_p, at.other(stage, 1), half);
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const float4 t = terms[4 * n];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) p[m][n][i] *= d_p[m][n][i] - (i % 2 == 0 ? t.y : t.w);
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        as_a(a[m][0], p[m][0], p[m][1]);
        as_a(a[m][1], p[m][2], p[m][3]);
      }
      multiply_rows<kDim>(d_k, a, at.other(stage, 0), half);
    }
  }

  const int64_t row = first + begin;
  if (g.parts == 1) {
    store_rows<kDim>(d_k, in.scale, shared, own, g.d_k + row * g.ld_dk + c.head * in.head_dim,
                     g.ld_dk, in.context - begin, in.head_dim);
    store_rows<kDim>(d_v, 1.0f, shared + Layout<kDim, kTiles>::kOwnBytes, own,
                     g.d_v + row * g.ld_dv + c.head * in.head_dim, g.ld_dv, in.context - begin,
                     in.head_dim);
  } else {
    const PartialRows to(in, g, c.head, c.part, row);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const int r = own + 16 * m + lane / 4;
      store_partial(d_k[m], in.scale, to.d_k, to.ld, r, in.context - begin, in.head_dim);
      store_partial(d_v[m], 1.0f, to.d_v, to.ld, r, in.context - begin, in.head_dim);
    }
  }
}

/// Blocks [0, key_columns) of a row of the grid are for keys, the others for queries; the rows of
/// the grid with most work come first.
template <int kDim, int kTiles>
__global__ __launch_bounds__(kThreads, 2) void backward_kernel(Inputs<Bf16> in, Gradients<Bf16> g,
                                                               int key_columns) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int column = blockIdx.x;
  if (column < key_columns) {
    key_block<kDim, kTiles>(in, g, column, blockIdx.y * kRows<kTiles>, shared);
  } else {
    query_block<kDim, kTiles>(in, g, column - key_columns,
                              (gridDim.y - 1 - blockIdx.y) * kRows<kTiles>, shared);
  }
}

template <int kDim, int kTiles>
void launch(const Inputs<Bf16>& in, int64_t sequences, const Gradients<Bf16>& g,
            cudaStream_t stream) {
  constexpr int kBytes = Layout<kDim, kTiles>::kBytes;
  const auto kernel = backward_kernel<kDim, kTiles>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int key_columns = static_cast<int>(sequences) * in.kv_heads * g.parts;
  const dim3 grid(static_cast<unsigned>(key_columns + sequences * in.heads),
                  (in.context + kRows<kTiles> - 1) / kRows<kTiles>);
  kernel<<<grid, kThreads, kBytes, stream>>>(in, g, key_columns);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <>
void launch_backward(const Inputs<Bf16>& in, int64_t sequences, const Gradients<Bf16>& g,
                     cudaStream_t stream) {
  if (in.head_dim > 16 && airmoe::cuda::has_wgmma()) {
    return launch_backward_wgmma(in, sequences, g, stream);
  }
  if (in.head_dim <= 16) return launch<16, 2>(in, sequences, g, stream);
  if (in.head_dim <= 32) return launch<32, 2>(in, sequences, g, stream);
  if (in.head_dim <= 64) return launch<64, 2>(in, sequences, g, stream);
  launch<128, 1>(in, sequences, g, stream);
}

}  // namespace airmoe::scheduler::cuda::attention
