#pragma once
// softmax(scale * Q K^T, causal) V of a batch of sequences on a device, by tiles with a running
// softmax: no probabilities in memory, the backward recomputes them. Specification:
// scheduler/trunk/causal_attention.hpp. Scale: 1 / sqrt(head_dim).

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"

namespace airmoe::scheduler::cuda {

/// heads is a multiple of kv_heads; query head h reads key/value head h / (heads / kv_heads).
/// head_dim: a multiple of 8, at most 128. Throws Error(ExitCode::usage) naming --heads otherwise.
struct AttentionShape {
  int64_t sequences = 0, context = 0, heads = 0, kv_heads = 0, head_dim = 0;
};

/// For calls on one stream at a time. Memory of the backward: 8 bytes per token and head, sequences
/// rounded up to 64 tokens; where few keys share many query heads, also 8 * head_dim bytes per
/// token and query head.
struct AttentionWorkspace {
  airmoe::cuda::DeviceBuffer<float> row_terms;  ///< (log_sum, <out, d_out>) of each row
  airmoe::cuda::DeviceBuffer<int> tickets;      ///< of tiles taken; zero between kernels
  airmoe::cuda::DeviceBuffer<float> partial;    ///< d_k, d_v of parts of the query heads of a group
};

/// Local, asynchronous, deterministic. T: float or __nv_bfloat16 (sums in fp32). Row t of sequence
/// s is row s * context + t; columns are head-major. ld_*: elements between rows, so that q, k and
/// v may be slices of one matrix; pointers are 16-byte aligned and ld_* multiples of 8.
/// @param q              Shape: [sequences * context, heads * head_dim]
/// @param k, v           Shape: [sequences * context, kv_heads * head_dim]
/// @param[out] out       Shape: [sequences * context, heads * head_dim], without gaps
/// @param[out] log_sum   log of each row's softmax normaliser. Shape: [sequences, heads, context]
template <class T>
void causal_attention_forward(const AttentionShape& shape, const T* q, const T* k, const T* v,
                              int64_t ld_q, int64_t ld_k, int64_t ld_v, T* out, float* log_sum,
                              AttentionWorkspace& workspace, cudaStream_t stream);

/// The same for the backward; d_q, d_k and d_v are overwritten, d_k and d_v summed over the query
/// heads of a group in a fixed order. out, log_sum: results of the forward; d_out has no gaps.
template <class T>
void causal_attention_backward(const AttentionShape& shape, const T* q, const T* k, const T* v,
                               int64_t ld_q, int64_t ld_k, int64_t ld_v, const T* out,
                               const float* log_sum, const T* d_out, T* d_q, T* d_k, T* d_v,
                               int64_t ld_dq, int64_t ld_dk, int64_t ld_dv,
                               AttentionWorkspace& workspace, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
