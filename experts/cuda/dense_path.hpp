#pragma once
// Shortlist-dense execution on a device: the tokens of a tile times all candidates that one of them
// selects, on tensor cores in bf16; in fp32 pair by pair. Same sums as experts/dense_path.hpp.
// Every function is asynchronous on its stream. Arrays over pairs are in place order: pair k of
// place p at p K + k, its hidden units or pre-activations next to each other.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/pair_tiles.hpp"
#include "experts/cuda/device_table.hpp"

namespace airmoe::experts::cuda {

/// Scratch of forward; grows to the largest micro-batch: n K m floats, swiglu without `saved` 3 n K
/// m.
struct ExpertWorkspace {
  airmoe::cuda::DeviceBuffer<float> coefficient, saved;
};

/// y(t, :) = sum over pairs of gate * expert(hidden(t, :)).
/// @param hidden  token order. Shape: [n, d]
/// @param gate    Shape: [n, K]
/// @param y       token order, overwritten. Shape: [n, d]
/// @param saved   pre-activations of the pairs for the backward: per pair m of the up rows, then
/// for
///                swiglu m of the gate rows. nullptr: not saved. Shape: [n, K * saved_per_pair()]
/// Throws Error when d is no multiple of 8.
template <class T>
void forward(const DeviceExpertTable<T>& table, const T* hidden, int64_t d,
             const airmoe::cuda::PairTiles& tiles, const float* gate, float* y, float* saved,
             ExpertWorkspace& workspace, cudaStream_t stream);

/// Gradients of <d_y, forward(...)> per pair; all overwritten.
struct PairGradients {
  float* d_gate = nullptr;   ///< <d_y(t), expert(h_t)>. Shape: [n, K]
  float* d_pre = nullptr;    ///< of the pre-activations of the up rows. Shape: [n, K * m]
  float* d_inner = nullptr;  ///< of those of the gate rows; swiglu only. Shape: [n, K * m]
  float* scaled = nullptr;   ///< gate * hidden unit: coefficients of d_y in d_down. [n, K * m]
};

/// @param saved  as written by forward
/// @param d_y    token order. Shape: [n, d]
/// The rest of the backward are sums over pairs: d_hidden = combine_pairs of {d_pre, up} and
/// {d_inner, gate_proj}; gradients of up, gate_proj, down = accumulate_pairs of {d_pre, hidden},
/// {d_inner, hidden}, {scaled, d_y}.
template <class T>
void backward_pairs(const DeviceExpertTable<T>& table, const airmoe::cuda::PairTiles& tiles,
                    const float* gate, const float* saved, const T* d_y, int64_t d,
                    const PairGradients& gradients, cudaStream_t stream);

}  // namespace airmoe::experts::cuda
