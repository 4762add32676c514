#pragma once
// hidden = silu(gate) * up and its gradient on a device. Specification:
// scheduler/trunk/swiglu_ffn.hpp.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::scheduler::cuda {

/// Local, asynchronous, T float or __nv_bfloat16. f is a multiple of 8; pointers are 16-byte
/// aligned.
/// @param gate_up      gate in the first f columns, up behind them. Shape: [n, 2 f]
/// @param[out] hidden  Shape: [n, f]
template <class T>
void swiglu_forward(const T* gate_up, int64_t n, int64_t f, T* hidden, cudaStream_t stream);

/// The same for the backward.
/// @param d_hidden         Shape: [n, f]
/// @param[out] d_gate_up   may be gate_up. Shape: [n, 2 f]
template <class T>
void swiglu_backward(const T* gate_up, const T* d_hidden, int64_t n, int64_t f, T* d_gate_up,
                     cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
