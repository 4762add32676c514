#pragma once
// Parameters of the experts on a device.

#include <cstdint>

#include "experts/expert_table.hpp"

namespace airmoe::experts::cuda {

/// ExpertTable (experts/expert_table.hpp) in device memory, rows without gaps. T: float or
/// __nv_bfloat16.
template <class T>
struct DeviceExpertTable {
  const T* up = nullptr;         ///< Shape: [rows * m, d]
  const T* down = nullptr;       ///< Shape: [rows * m, d]
  const T* gate_proj = nullptr;  ///< Shape: [rows * m, d]; swiglu only
  int64_t expert_dim = 1;        ///< m
  ExpertActivation activation = ExpertActivation::gelu;

  bool gated() const { return activation == ExpertActivation::swiglu; }
  /// Pre-activations saved per selected pair for the backward: m, or 2 m for swiglu.
  int64_t saved_per_pair() const { return gated() ? 2 * expert_dim : expert_dim; }
};

}  // namespace airmoe::experts::cuda
