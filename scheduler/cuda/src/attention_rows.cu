// What surrounds the backward of causal attention: one pass over rows before it, one after.

#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda::attention {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // per row of a head

/// Eight neighbouring elements.
__device__ __forceinline__ void load_8(float (&x)[8], const float* from) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void load_8(float (&x)[8], const __nv_bfloat16* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}

template <class T>
__global__ void row_terms_kernel(const T* out, const T* d_out, const float* log_sum,
                                 float2* row_terms, int64_t places, int context, int pitch,
                                 int heads, int head_dim) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t place = index / heads, head = index % heads;
  const int64_t sequence = place / pitch, row = place % pitch;
  const int64_t from = ((sequence * context + row) * heads + head) * head_dim;
  float sum = 0.0f;
  if (place < places && row < context) {
    for (int column = 8 * lane; column < head_dim; column += 8 * kLanes) {
      float a[8], b[8];
      load_8(a, out + from + column);
      load_8(b, d_out + from + column);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (place >= places || lane != 0) return;
  const int64_t column = sequence * heads + head;
  row_terms[column * pitch + row] = row < context
                                        ? make_float2(log_sum[column * context + row] * kLog2E, sum)
                                        : make_float2(0.0f, 0.0f);
}

template <class T>
__global__ void sum_parts_kernel(Gradients<T> g, int64_t columns) {
  const int64_t count = g.rows * columns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= 2 * count) return;
  float sum = 0.0f;
  for (int part = 0; part < g.parts; ++part) sum += g.partial[2 * part * count + i];
  const int64_t row = i % count / columns, column = i % columns;
  if (i < count) {
    store(g.d_k + row * g.ld_dk + column, sum);
  } else {
    store(g.d_v + row * g.ld_dv + column, sum);
  }
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

template <class T>
void launch_row_terms(const Inputs<T>& in, int64_t sequences, const T* out, const T* d_out,
                      const float* log_sum, float2* row_terms, int pitch, cudaStream_t stream) {
  const int64_t places = sequences * pitch;
  row_terms_kernel<<<blocks_for(places * in.heads * kLanes), kThreads, 0, stream>>>(
      out, d_out, log_sum, row_terms, places, in.context, pitch, in.heads, in.head_dim);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void launch_sum_parts(const Inputs<T>& in, const Gradients<T>& gradients, cudaStream_t stream) {
  const int64_t columns = static_cast<int64_t>(in.kv_heads) * in.head_dim;
  sum_parts_kernel<<<blocks_for(2 * gradients.rows * columns), kThreads, 0, stream>>>(gradients,
                                                                                      columns);
  AIRMOE_CUDA_LAUNCHED();
}

#define AIRMOE_INSTANTIATE(T)                                                                    \
  template void launch_row_terms<T>(const Inputs<T>&, int64_t, const T*, const T*, const float*, \
                                    float2*, int, cudaStream_t);                                 \
  template void launch_sum_parts<T>(const Inputs<T>&, const Gradients<T>&, cudaStream_t);
AIRMOE_INSTANTIATE(float)
AIRMOE_INSTANTIATE(__nv_bfloat16)

}  // namespace airmoe::scheduler::cuda::attention
