#pragma once
// What the trunk on a device asks of the layer that stands in place of a dense FFN.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::scheduler::cuda {

/// Asynchronous on `stream`; collective, in the same order on every rank, also with zero tokens.
template <class T>
class DeviceMoeSlot {
 public:
  virtual ~DeviceMoeSlot() = default;
  /// out = sum over selected experts, before the LayerNorm. Shapes: [n, d].
  /// `hidden` must stay as it is until the backward.
  virtual void forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) = 0;
  /// Gradient of the last forward (training mode). d_hidden is overwritten. Shapes: [n, d].
  virtual void backward(const T* d_out, float* d_hidden, cudaStream_t stream) = 0;
};

}  // namespace airmoe::scheduler::cuda
