#include <cmath>

#include <cuda_bf16.h>

#include "scheduler/cuda/adamw.hpp"
#include "scheduler/cuda/src/adamw_update.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;

AdamwRates rates_of(const AdamWOptions& options, float learning_rate, int64_t step) {
  AIRMOE_CHECK(step >= 1, "AdamW step {}: the first update is step 1", step);
  const double rate = learning_rate, beta1 = options.beta1, beta2 = options.beta2;
  const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  return {options.beta1,
          static_cast<float>(1.0 - beta1),
          options.beta2,
          static_cast<float>(1.0 - beta2),
          static_cast<float>(rate / correction1),
          static_cast<float>(1.0 / std::sqrt(correction2)),
          options.epsilon,
          1.0f,
          static_cast<float>(1.0 - rate * static_cast<double>(options.weight_decay))};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const ParameterTile* __restrict__ tiles, AdamwRates rates, int32_t number,
                 const float* __restrict__ clip_factor, const int* __restrict__ skip,
                 float* __restrict__ value, float* __restrict__ gradient,
                 float* __restrict__ moment1, float* __restrict__ moment2, T* __restrict__ copy) {
  if (skip != nullptr && *skip != 0) return;
  const ParameterTile tile = tiles[blockIdx.x];
  const float scale = clip_factor == nullptr ? 1.0f : *clip_factor;
  const float keep_value = tile.decay ? rates.keep_decayed : rates.keep_value;
  const int64_t end = tile.begin + tile.count;
  for (int64_t i = tile.begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    const bool has_gradient = tile.has_gradient(i, number);
    if (tile.waits && !has_gradient) continue;
    float4 v = *reinterpret_cast<const float4*>(value + i);
    const float4 g = has_gradient ? *reinterpret_cast<const float4*>(gradient + i) : float4{};
    float4 a = *reinterpret_cast<const float4*>(moment1 + i);
    float4 b = *reinterpret_cast<const float4*>(moment2 + i);
    update(rates, keep_value, scale, v, g, a, b);
    *reinterpret_cast<float4*>(value + i) = v;
    if (tile.written == nullptr) *reinterpret_cast<float4*>(gradient + i) = float4{};
    *reinterpret_cast<float4*>(moment1 + i) = a;
    *reinterpret_cast<float4*>(moment2 + i) = b;
    if (tile.copied) store_copy(copy + i, v);
    if (tile.waits && tile.row_size.remainder(static_cast<int>(i - tile.begin)) == 0) {
      tile.updated[tile.row_of(i)] = number;
    }
  }
}

/// A step that is skipped changes nothing.
__global__ void record_kernel(AdamwRates rates, const int* skip, AdamwRates* to) {
  *to = skip != nullptr && *skip != 0 ? AdamwRates{} : rates;
}

}  // namespace

template <class T>
void adamw_step(DeviceParameters<T>& parameters, const AdamWOptions& options, float learning_rate,
                int64_t step, const float* clip_factor, const int* skip, cudaStream_t stream) {
  const AdamwRates rates = rates_of(options, learning_rate, step);
  const ParameterTiles& tiles = parameters.tiles(stream);
  if (tiles.tile.size() == 0) return;
  UpdateHistory& history = parameters.history();
  if (history.made - history.finished == UpdateHistory::kMost) finish_rows(parameters, stream);
  adamw_kernel<T><<<static_cast<unsigned>(tiles.tile.size()), kThreads, 0, stream>>>(
      tiles.tile.data(), rates, history.next(), clip_factor, skip, parameters.values(),
      parameters.gradients(), parameters.moments1(), parameters.moments2(),
      parameters.compute_copies());
  AIRMOE_CUDA_LAUNCHED();
  ++history.made;
  if (parameters.experts().empty()) {
    history.finished = history.made;
    return;
  }
  record_kernel<<<1, 1, 0, stream>>>(rates, skip,
                                     history.rates.data() + history.made % UpdateHistory::kMost);
  AIRMOE_CUDA_LAUNCHED();
}

template void adamw_step(DeviceParameters<float>&, const AdamWOptions&, float, int64_t,
                         const float*, const int*, cudaStream_t);
template void adamw_step(DeviceParameters<__nv_bfloat16>&, const AdamWOptions&, float, int64_t,
                         const float*, const int*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
