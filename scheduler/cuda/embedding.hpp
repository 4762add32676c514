#pragma once
// Token embedding on a device: a row of the table per token. Specification:
// scheduler/trunk/embedding.hpp.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"

namespace airmoe::scheduler::cuda {

/// Local, asynchronous. out row t = table row tokens[t]; a token outside the table gives a row of
/// NaN, so that the loss shows it. d is a multiple of 8. Shapes: table [V, d], out [n, d].
void embedding_forward(const int32_t* tokens, const float* table, int64_t n, int64_t vocab,
                       int64_t d, float* out, cudaStream_t stream);

/// Memory: 20 bytes per token and n / 32 rows.
struct EmbeddingWorkspace {
  airmoe::cuda::DeviceBuffer<int32_t> key, sorted_key;      ///< rows of the table. Shape: [n]
  airmoe::cuda::DeviceBuffer<int32_t> index, sorted_index;  ///< token of a place. Shape: [n]
  airmoe::cuda::DeviceBuffer<uint8_t> sort;
  airmoe::cuda::DeviceBuffer<float> partial;  ///< sums of runs cut by chunks. Shape: [chunks, 2, d]
};

/// Local, asynchronous, deterministic. d_table row tokens[t] += d_out row t; the order of additions
/// depends on the tokens only. Tokens outside the table are left out.
void embedding_backward(const int32_t* tokens, const float* d_out, int64_t n, int64_t vocab,
                        int64_t d, float* d_table, EmbeddingWorkspace& workspace,
                        cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
