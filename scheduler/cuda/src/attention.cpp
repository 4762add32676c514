#include "scheduler/cuda/attention.hpp"

#include <cmath>

#include "scheduler/cuda/src/attention_kernels.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using attention::Gradients;
using attention::Inputs;

constexpr int64_t kMaxHeadDim = 128;
/// Blocks that keep a large device busy; a constant, so that sums do not depend on the device.
constexpr int64_t kEnoughBlocks = 512;
/// Keys per block of the backward, for the estimate of their number.
constexpr int64_t kKeyBlock = 128;

template <class T>
Inputs<T> checked_inputs(const AttentionShape& shape, const T* q, const T* k, const T* v,
                         int64_t ld_q, int64_t ld_k, int64_t ld_v) {
  const int64_t hd = shape.head_dim;
  if (hd <= 0 || hd % 8 != 0 || hd > kMaxHeadDim) {
    fail(ExitCode::usage,
         "--heads: a head of {} columns; on a GPU dim / heads must be a multiple of 8, at most {}",
         hd, kMaxHeadDim);
  }
  AIRMOE_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
               "{} query heads over {} key/value heads", shape.heads, shape.kv_heads);
  AIRMOE_CHECK(ld_q >= shape.heads * hd && ld_k >= shape.kv_heads * hd &&
                   ld_v >= shape.kv_heads * hd && ld_q % 8 == 0 && ld_k % 8 == 0 && ld_v % 8 == 0,
               "attention: rows {}, {}, {} elements apart", ld_q, ld_k, ld_v);
  return {q,
          k,
          v,
          ld_q,
          ld_k,
          ld_v,
          static_cast<int>(shape.context),
          static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads),
          static_cast<int>(shape.heads / shape.kv_heads),
          static_cast<int>(hd),
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(hd)))};
}

/// Into how many parts a group of query heads is divided, so that there are enough blocks: each
/// part's gradients of keys and values are sums of their own, added afterwards.
int64_t count_parts(const AttentionShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t blocks =
      shape.sequences * shape.kv_heads * ((shape.context + kKeyBlock - 1) / kKeyBlock);
  int64_t parts = 1;
  while (parts < group && (group % parts != 0 || blocks * parts < kEnoughBlocks)) ++parts;
  return parts;
}

int* tickets_of(AttentionWorkspace& workspace, cudaStream_t stream) {
  if (workspace.tickets.size() == 0) {
    workspace.tickets.ensure(1);
    workspace.tickets.zero(stream);
  }
  return workspace.tickets.data();
}

}  // namespace

template <class T>
void causal_attention_forward(const AttentionShape& shape, const T* q, const T* k, const T* v,
                              int64_t ld_q, int64_t ld_k, int64_t ld_v, T* out, float* log_sum,
                              AttentionWorkspace& workspace, cudaStream_t stream) {
  const Inputs<T> in = checked_inputs(shape, q, k, v, ld_q, ld_k, ld_v);
  if (shape.sequences * shape.context == 0) return;
  attention::launch_forward(in, shape.sequences, out, log_sum, tickets_of(workspace, stream),
                            stream);
}

template <class T>
void causal_attention_backward(const AttentionShape& shape, const T* q, const T* k, const T* v,
                               int64_t ld_q, int64_t ld_k, int64_t ld_v, const T* out,
                               const float* log_sum, const T* d_out, T* d_q, T* d_k, T* d_v,
                               int64_t ld_dq, int64_t ld_dk, int64_t ld_dv,
                               AttentionWorkspace& workspace, cudaStream_t stream) {
  const Inputs<T> in = checked_inputs(shape, q, k, v, ld_q, ld_k, ld_v);
  AIRMOE_CHECK(ld_dq % 8 == 0 && ld_dk % 8 == 0 && ld_dv % 8 == 0,
               "attention: gradient rows {}, {}, {} elements apart", ld_dq, ld_dk, ld_dv);
  const int64_t rows = shape.sequences * shape.context;
  if (rows == 0) return;
  const int64_t parts = count_parts(shape);
  const int64_t pitch =
      (shape.context + attention::kTermRows - 1) / attention::kTermRows * attention::kTermRows;
  workspace.row_terms.ensure(2 * shape.sequences * shape.heads * pitch);
  if (parts > 1) workspace.partial.ensure(parts * 2 * rows * shape.kv_heads * shape.head_dim);
  float2* row_terms = reinterpret_cast<float2*>(workspace.row_terms.data());
  const Gradients<T> gradients{d_out,
                               row_terms,
                               d_q,
                               d_k,
                               d_v,
                               ld_dq,
                               ld_dk,
                               ld_dv,
                               parts > 1 ? workspace.partial.data() : nullptr,
                               static_cast<int>(parts),
                               rows,
                               static_cast<int>(pitch),
                               tickets_of(workspace, stream)};
  attention::launch_row_terms(in, shape.sequences, out, d_out, log_sum, row_terms,
                              static_cast<int>(pitch), stream);
  attention::launch_backward(in, shape.sequences, gradients, stream);
  if (parts > 1) attention::launch_sum_parts(in, gradients, stream);
}

#define AIRMOE_INSTANTIATE(T)                                                                     \
  template void causal_attention_forward<T>(const AttentionShape&, const T*, const T*, const T*,  \
                                            int64_t, int64_t, int64_t, T*, float*,                \
                                            AttentionWorkspace&, cudaStream_t);                   \
  template void causal_attention_backward<T>(const AttentionShape&, const T*, const T*, const T*, \
                                             int64_t, int64_t, int64_t, const T*, const float*,   \
                                             const T*, T*, T*, T*, int64_t, int64_t, int64_t,     \
                                             AttentionWorkspace&, cudaStream_t);
AIRMOE_INSTANTIATE(float)
AIRMOE_INSTANTIATE(__nv_bfloat16)

}  // namespace airmoe::scheduler::cuda
