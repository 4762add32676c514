#pragma once
// The parts of causal attention on a device, one launcher per kernel; attention.cpp checks the
// arguments and picks.

#include <cstdint>

#include <cuda_bf16.h>

#include "scheduler/cuda/attention.hpp"

namespace airmoe::scheduler::cuda::attention {

/// exp(x) = 2^(x log2 e): the kernels compute powers of two.
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

/// The terms of so many rows are loaded at once.
inline constexpr int kTermRows = 64;

/// Operands that forward and backward share, for kernels.
template <class T>
struct Inputs {
  const T *q, *k, *v;
  int64_t ld_q, ld_k, ld_v;
  int context, heads, kv_heads, group, head_dim;  ///< group = heads / kv_heads
  float scale;                                    ///< 1 / sqrt(head_dim)
};

/// What the backward adds. `row_terms`: (log_sum * log2 e, <out, d_out>) by sequence, head,
/// row; zero after the last.
template <class T>
struct Gradients {
  const T* d_out;
  const float2* row_terms;
  T *d_q, *d_k, *d_v;
  int64_t ld_dq, ld_dk, ld_dv;
  float* partial;  ///< [parts][d_k, d_v][rows][kv_heads * head_dim]; nullptr for one part
  int parts;       ///< the query heads of a group are divided into so many equal parts
  int64_t rows;    ///< sequences * context
  int pitch;       ///< row terms of a head: the context, rounded up to kTermRows
  int* tickets;    ///< one zero, and that again afterwards
};

template <class T>
void launch_forward(const Inputs<T>& in, int64_t sequences, T* out, float* log_sum, int* tickets,
                    cudaStream_t stream);
/// The same with warp-group products, where airmoe::cuda::has_wgmma(). `tickets`: one zero, and
/// that again afterwards; the others do not use it.
void launch_forward_wgmma(const Inputs<__nv_bfloat16>& in, int64_t sequences, __nv_bfloat16* out,
                          float* log_sum, int* tickets, cudaStream_t stream);
template <class T>
void launch_backward(const Inputs<T>& in, int64_t sequences, const Gradients<T>& gradients,
                     cudaStream_t stream);
void launch_backward_wgmma(const Inputs<__nv_bfloat16>& in, int64_t sequences,
                           const Gradients<__nv_bfloat16>& gradients, cudaStream_t stream);
template <class T>
void launch_row_terms(const Inputs<T>& in, int64_t sequences, const T* out, const T* d_out,
                      const float* log_sum, float2* row_terms, int pitch, cudaStream_t stream);
template <>
void launch_forward(const Inputs<float>&, int64_t, float*, float*, int*, cudaStream_t);
template <>
void launch_forward(const Inputs<__nv_bfloat16>&, int64_t, __nv_bfloat16*, float*, int*,
                    cudaStream_t);
template <>
void launch_backward(const Inputs<float>&, int64_t, const Gradients<float>&, cudaStream_t);
template <>
void launch_backward(const Inputs<__nv_bfloat16>&, int64_t, const Gradients<__nv_bfloat16>&,
                     cudaStream_t);
/// d_k and d_v from their parts, added in order.
template <class T>
void launch_sum_parts(const Inputs<T>& in, const Gradients<T>& gradients, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda::attention
