#include <cuda_bf16.h>

#include "experts/cuda/grouped_path.hpp"
#include "experts/cuda/src/activation.cuh"
#include "experts/cuda/src/pair_scores.cuh"

namespace airmoe::experts::cuda {
namespace {

/// Gradients of hidden unit `unit` of a pair; d_unit is the gradient before the gate.
template <ExpertActivation kActivation>
struct UnitGradients {
  const float* gate;
  const float* saved;
  PairGradients to;
  int m;

  /// Returns the unit's part of d_gate.
  __device__ float unit(int64_t pair, int unit, float d_unit) const {
    constexpr bool kGated = kActivation == ExpertActivation::swiglu;
    const float* pre = saved + pair * (kGated ? 2 * m : m) + unit;
    const float g = gate[pair];
    const int64_t i = pair * m + unit;
    if constexpr (kGated) {
      const ValueAndSlope f = activation<kActivation>(pre[m]);
      const float value = f.value * pre[0];
      to.scaled[i] = g * value;
      to.d_pre[i] = g * d_unit * f.value;
      to.d_inner[i] = g * d_unit * pre[0] * f.slope;
      return value * d_unit;
    } else {
      const ValueAndSlope f = activation<kActivation>(pre[0]);
      to.scaled[i] = g * f.value;
      to.d_pre[i] = g * d_unit * f.slope;
      return f.value * d_unit;
    }
  }
  /// For m = 1.
  __device__ void operator()(int64_t pair, int, float d_unit) const {
    to.d_gate[pair] = unit(pair, 0, d_unit);
  }
};

struct Store {
  float* to;
  int m;
  __device__ void operator()(int64_t pair, int unit, float value) const {
    to[pair * m + unit] = value;
  }
};

/// For m > 1: d_pre holds the gradients of hidden units. `lanes` threads, a power of two up to 32,
/// share a pair.
template <ExpertActivation kActivation>
__global__ void __launch_bounds__(kPairThreads)
    unit_gradients_kernel(UnitGradients<kActivation> gradients, int64_t pairs, int lanes) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x;
  const int64_t pair = thread / lanes;
  float sum = 0;
  for (int j = static_cast<int>(thread % lanes); pair < pairs && j < gradients.m; j += lanes) {
    sum += gradients.unit(pair, j, gradients.to.d_pre[pair * gradients.m + j]);
  }
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (pair < pairs && thread % lanes == 0) gradients.to.d_gate[pair] = sum;
}

template <ExpertActivation kActivation, class T>
void unit_gradients(const DeviceExpertTable<T>& table, const PairWork& work, const float* gate,
                    const float* saved, const T* d_y, int64_t d, const PairGradients& to,
                    cudaStream_t stream) {
  const int m = static_cast<int>(table.expert_dim);
  const UnitGradients<kActivation> gradients{gate, saved, to, m};
  if (m == 1) {
    pair_scores(work, d_y, d, table.down, 1, gradients, stream);
    return;
  }
  pair_scores(work, d_y, d, table.down, m, Store{to.d_pre, m}, stream);
  int lanes = 1;
  while (lanes < m && lanes < 32) lanes *= 2;
  const int64_t threads = work.tiles.pairs() * lanes;
  unit_gradients_kernel<kActivation>
      <<<static_cast<unsigned>((threads + kPairThreads - 1) / kPairThreads), kPairThreads, 0,
         stream>>>(gradients, work.tiles.pairs(), lanes);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void backward(const DeviceExpertTable<T>& table, const PairWork& work, const float* gate,
              const float* saved, const T* d_y, int64_t d, const PairGradients& gradients,
              cudaStream_t stream) {
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  if (work.tiles.tokens.tokens == 0) return;
  const auto run = [&]<ExpertActivation kActivation>() {
    unit_gradients<kActivation>(table, work, gate, saved, d_y, d, gradients, stream);
  };
  switch (table.activation) {
    case ExpertActivation::gelu:
      return run.template operator()<ExpertActivation::gelu>();
    case ExpertActivation::silu:
      return run.template operator()<ExpertActivation::silu>();
    case ExpertActivation::relu:
      return run.template operator()<ExpertActivation::relu>();
    case ExpertActivation::swiglu:
      return run.template operator()<ExpertActivation::swiglu>();
  }
}

}  // namespace

template <class T>
void backward_pairs(const DeviceExpertTable<T>& table, const PairTiles& tiles, const float* gate,
                    const float* saved, const T* d_y, int64_t d, const PairGradients& gradients,
                    cudaStream_t stream) {
  backward<T>(table, {tiles, nullptr}, gate, saved, d_y, d, gradients, stream);
}

template <class T>
void backward_pairs_grouped(const DeviceExpertTable<T>& table, const PairTiles& tiles,
                            const PairGroups& groups, const float* gate, const float* saved,
                            const T* d_y, int64_t d, const PairGradients& gradients,
                            cudaStream_t stream) {
  backward<T>(table, {tiles, &groups}, gate, saved, d_y, d, gradients, stream);
}

template void backward_pairs<float>(const DeviceExpertTable<float>&, const PairTiles&, const float*,
                                    const float*, const float*, int64_t, const PairGradients&,
                                    cudaStream_t);
template void backward_pairs_grouped<float>(const DeviceExpertTable<float>&, const PairTiles&,
                                            const PairGroups&, const float*, const float*,
                                            const float*, int64_t, const PairGradients&,
                                            cudaStream_t);
template void backward_pairs<__nv_bfloat16>(const DeviceExpertTable<__nv_bfloat16>&,
                                            const PairTiles&, const float*, const float*,
                                            const __nv_bfloat16*, int64_t, const PairGradients&,
                                            cudaStream_t);
template void backward_pairs_grouped<__nv_bfloat16>(const DeviceExpertTable<__nv_bfloat16>&,
                                                    const PairTiles&, const PairGroups&,
                                                    const float*, const float*,
                                                    const __nv_bfloat16*, int64_t,
                                                    const PairGradients&, cudaStream_t);

}  // namespace airmoe::experts::cuda
