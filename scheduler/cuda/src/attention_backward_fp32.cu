// Backward of causal attention in fp32: blocks for queries and blocks for keys, as in bf16.

#include "scheduler/cuda/src/attention_fp32.cuh"
#include "scheduler/cuda/src/attention_gradients.cuh"

namespace airmoe::scheduler::cuda::attention {
namespace fp32 {
namespace {

/// Shared memory: tiles of queries, d_out, keys, values; probabilities and gradients of scores.
template <int kDim>
struct Tiles {
  static constexpr int kFloats = 4 * kTile<kDim> + 2 * kSquare<kDim>;
  static constexpr int kLd = kRows<kDim> + 1;
  float *q, *d_out, *k, *v, *p, *d_s;  ///< p, d_s: [query, key], rows kLd apart

  __device__ explicit Tiles(float* shared)
      : q(shared),
        d_out(q + kTile<kDim>),
        k(d_out + kTile<kDim>),
        v(k + kTile<kDim>),
        p(v + kTile<kDim>),
        d_s(p + kSquare<kDim>) {}
};

/// Fills p and d_s of the tiles loaded; `query`, `key`: their first rows.
template <int kDim>
__device__ __forceinline__ void differentiate(const Inputs<float>& in, const Tiles<kDim>& tiles,
                                              const float2* terms, int query, int key) {
  constexpr int kM = kRows<kDim> / kSide;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  float scores[kM][kM] = {}, d_p[kM][kM] = {};
  multiply<kDim>(scores, rows_of<kDim>(tiles.q), rows_of<kDim>(tiles.k));
  multiply<kDim>(d_p, rows_of<kDim>(tiles.d_out), rows_of<kDim>(tiles.v));
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const int row = query + y + kSide * i;
    const float2 t = row < in.context ? terms[row] : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int j = 0; j < kM; ++j) {
      const bool hidden = key + x + kSide * j > row || row >= in.context;
      const float p = hidden ? 0.0f : expf(fmaf(scores[i][j], in.scale, -t.x * kLn2));
      const int at = (y + kSide * i) * Tiles<kDim>::kLd + x + kSide * j;
      tiles.p[at] = p;
      tiles.d_s[at] = p * (d_p[i][j] - t.y);
    }
  }
}

template <int kDim>
__global__ __launch_bounds__(kThreads) void query_kernel(Inputs<float> in, Gradients<float> g) {
  constexpr int kM = kRows<kDim> / kSide;
  extern __shared__ float shared_floats[];
  const Tiles<kDim> tiles(shared_floats);
  const int sequence = blockIdx.x / in.heads, head = blockIdx.x % in.heads;
  const int begin = (gridDim.y - 1 - blockIdx.y) * kRows<kDim>;
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  const float* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const float* v = in.v + first * in.ld_v + head / in.group * in.head_dim;
  const float2* terms = terms_of(in, g, sequence, head);
  load_tile<kDim>(tiles.q, in.q + (first + begin) * in.ld_q + head * in.head_dim, in.ld_q,
                  in.context - begin, in.head_dim);
  load_tile<kDim>(tiles.d_out, g.d_out + (first + begin) * ld_out + head * in.head_dim, ld_out,
                  in.context - begin, in.head_dim);
  float d_q[kM][kDim / kSide] = {};
  for (int key = 0; key <= begin; key += kRows<kDim>) {
    __syncthreads();
    load_tile<kDim>(tiles.k, k + key * in.ld_k, in.ld_k, in.context - key, in.head_dim);
    load_tile<kDim>(tiles.v, v + key * in.ld_v, in.ld_v, in.context - key, in.head_dim);
    __syncthreads();
    differentiate(in, tiles, terms, begin, key);
    __syncthreads();
    multiply<kRows<kDim>>(d_q, Operand{tiles.d_s, tiles.kLd, 1}, columns_of<kDim>(tiles.k));
  }
  store(d_q, in.scale, g.d_q + (first + begin) * g.ld_dq + head * in.head_dim, g.ld_dq,
        in.context - begin, in.head_dim);
}

template <int kDim>
__global__ __launch_bounds__(kThreads) void key_kernel(Inputs<float> in, Gradients<float> g) {
  constexpr int kM = kRows<kDim> / kSide;
  extern __shared__ float shared_floats[];
  const Tiles<kDim> tiles(shared_floats);
  const KeyColumn c(in, g.parts, static_cast<int>(blockIdx.x));
  const int begin = blockIdx.y * kRows<kDim>;
  const int64_t first = static_cast<int64_t>(c.sequence) * in.context;
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  load_tile<kDim>(tiles.k, in.k + (first + begin) * in.ld_k + c.head * in.head_dim, in.ld_k,
                  in.context - begin, in.head_dim);
  load_tile<kDim>(tiles.v, in.v + (first + begin) * in.ld_v + c.head * in.head_dim, in.ld_v,
                  in.context - begin, in.head_dim);
  float d_k[kM][kDim / kSide] = {}, d_v[kM][kDim / kSide] = {};
  for (int head = c.first_head; head < c.first_head + c.heads; ++head) {
    const float2* terms = terms_of(in, g, c.sequence, head);
    for (int query = begin; query < in.context; query += kRows<kDim>) {
      __syncthreads();
      load_tile<kDim>(tiles.q, in.q + (first + query) * in.ld_q + head * in.head_dim, in.ld_q,
                      in.context - query, in.head_dim);
      load_tile<kDim>(tiles.d_out, g.d_out + (first + query) * ld_out + head * in.head_dim, ld_out,
                      in.context - query, in.head_dim);
      __syncthreads();
      differentiate(in, tiles, terms, query, begin);
      __syncthreads();
      multiply<kRows<kDim>>(d_v, Operand{tiles.p, 1, tiles.kLd}, columns_of<kDim>(tiles.d_out));
      multiply<kRows<kDim>>(d_k, Operand{tiles.d_s, 1, tiles.kLd}, columns_of<kDim>(tiles.q));
    }
  }
  const int64_t row = first + begin;
  if (g.parts == 1) {
    store(d_k, in.scale, g.d_k + row * g.ld_dk + c.head * in.head_dim, g.ld_dk, in.context - begin,
          in.head_dim);
    store(d_v, 1.0f, g.d_v + row * g.ld_dv + c.head * in.head_dim, g.ld_dv, in.context - begin,
          in.head_dim);
  } else {
    const PartialRows to(in, g, c.head, c.part, row);
    store(d_k, in.scale, to.d_k, to.ld, in.context - begin, in.head_dim);
    store(d_v, 1.0f, to.d_v, to.ld, in.context - begin, in.head_dim);
  }
}

template <int kDim>
void launch(const Inputs<float>& in, int64_t sequences, const Gradients<float>& g,
            cudaStream_t stream) {
  constexpr int kBytes = Tiles<kDim>::kFloats * static_cast<int>(sizeof(float));
  const unsigned tiles = (in.context + kRows<kDim> - 1) / kRows<kDim>;
  const auto run = [&](auto kernel, int64_t columns) {
    AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    kernel<<<dim3(static_cast<unsigned>(columns), tiles), kThreads, kBytes, stream>>>(in, g);
    AIRMOE_CUDA_LAUNCHED();
  };
  run(query_kernel<kDim>, sequences * in.heads);
  run(key_kernel<kDim>, sequences * in.kv_heads * g.parts);
}

}  // namespace
}  // namespace fp32

template <>
void launch_backward(const Inputs<float>& in, int64_t sequences, const Gradients<float>& g,
                     cudaStream_t stream) {
  if (in.head_dim <= 16) return fp32::launch<16>(in, sequences, g, stream);
  if (in.head_dim <= 32) return fp32::launch<32>(in, sequences, g, stream);
  if (in.head_dim <= 64) return fp32::launch<64>(in, sequences, g, stream);
  fp32::launch<128>(in, sequences, g, stream);
}

}  // namespace airmoe::scheduler::cuda::attention
