#pragma once
// Experts that no token has selected in an optimizer step have no gradient. Their gradient rows are
// neither read nor cleared, whatever they hold, and the update of rows that only selected experts
// are computed with (up, down, gate) waits until a token selects the expert: without a gradient it
// needs nothing but the step's rates, which are kept, so that it has the same bits later.

#include <cstdint>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
class DeviceParameters;

/// What one update multiplies with (scheduler/optim/adamw.hpp).
struct AdamwRates {
  float keep1 = 1, add1 = 0, keep2 = 1, add2 = 0, rate1 = 0, root2 = 1, epsilon = 1;
  float keep_value = 1, keep_decayed = 1;  ///< without and with weight decay
};

/// The experts of one MoE layer. Updates are counted from DeviceParameters::upload() on, from 1.
struct ExpertRows {
  int64_t rows = 0;
  /// Rows of `scored` parameters are updated in every step, those of `computed` ones may wait.
  std::vector<const Parameter*> scored, computed;
  airmoe::cuda::DeviceBuffer<int32_t> written;  ///< last update that has a gradient. [rows]
  airmoe::cuda::DeviceBuffer<int32_t> updated;  ///< last update of `computed` rows. [rows]
};

/// Rates of the updates made, those that rows may wait for.
struct UpdateHistory {
  static constexpr int32_t kMost = 1024;         ///< updates that a row can wait for
  int32_t made = 0;                              ///< updates since upload()
  int32_t finished = 0;                          ///< no row waits for this one or an earlier one
  airmoe::cuda::DeviceBuffer<AdamwRates> rates;  ///< of update u at u % kMost. [kMost]

  int32_t next() const { return made + 1; }
};

/// Local, asynchronous. To be called between selection and computation: makes the updates that the
/// `computed` rows of selected experts wait for.
/// @param count  device; how many tokens have selected each expert. Shape: [rows]
template <class T>
void select_rows(DeviceParameters<T>& parameters, ExpertRows& experts, const int32_t* count,
                 cudaStream_t stream);

/// Local, asynchronous: makes all updates that rows wait for.
template <class T>
void finish_rows(DeviceParameters<T>& parameters, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
