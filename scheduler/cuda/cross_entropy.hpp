#pragma once
// Cross-entropy of logits = hidden * embedding^T on a device, forward and backward in one pass over
// chunks of rows. Specification: scheduler/trunk/cross_entropy.hpp.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "scheduler/cuda/gemm.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
struct CrossEntropyWorkspace {
  int64_t logit_bytes = int64_t{256} << 20;     ///< most bytes of logits (but at least one row)
  airmoe::cuda::DeviceBuffer<T> logits;         ///< Shape: [chunk, V rounded up to 8]
  airmoe::cuda::DeviceBuffer<double> row_loss;  ///< Shape: [n]
};

/// The shapes and what both directions read. All pointers are to device memory, 16-byte aligned.
template <class T>
struct CrossEntropyInput {
  int64_t n = 0, d = 0, vocab = 0;
  const T* hidden = nullptr;         ///< Shape: [n, d]
  const T* embedding = nullptr;      ///< Shape: [V, d]
  const int32_t* targets = nullptr;  ///< one outside [0, V) makes the loss NaN. Shape: [n]
};

/// Local, asynchronous, deterministic; logits are T, sums fp32, the sum over rows double. T: float
/// or __nv_bfloat16. *loss += sum over rows of -log softmax(logits)[target], in nats.
template <class T>
void cross_entropy(Gemm& gemm, const CrossEntropyInput<T>& input, double* loss,
                   CrossEntropyWorkspace<T>& workspace, cudaStream_t stream);
/// Also the gradient of loss_scale * that sum: d_hidden [n, d] is overwritten, d_embedding [V, d]
/// is added to.
template <class T>
void cross_entropy_backward(Gemm& gemm, const CrossEntropyInput<T>& input, float loss_scale,
                            double* loss, T* d_hidden, float* d_embedding,
                            CrossEntropyWorkspace<T>& workspace, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
