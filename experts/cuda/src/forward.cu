#include <cuda_bf16.h>

#include "comm/base/cuda/pair_combine.hpp"
#include "experts/cuda/grouped_path.hpp"
#include "experts/cuda/src/activation.cuh"
#include "experts/cuda/src/pair_scores.cuh"

namespace airmoe::experts::cuda {
namespace {

/// Keeps the products as they are.
struct Store {
  float* to;
  int per_pair;
  __device__ void operator()(int64_t pair, int unit, float value) const {
    to[pair * per_pair + unit] = value;
  }
};

/// Hidden units times gates from products with the up rows.
template <ExpertActivation kActivation>
struct HiddenUnits {
  const float* gate;
  float* saved;  // may be nullptr unless swiglu, whose products with the gate rows it holds
  float* coefficient;
  int m, saved_per_pair;

  __device__ void operator()(int64_t pair, int unit, float linear) const {
    float value;
    if constexpr (kActivation == ExpertActivation::swiglu) {
      value = linear * activation<kActivation>(saved[pair * saved_per_pair + m + unit]).value;
    } else {
      value = activation<kActivation>(linear).value;
    }
    if (saved != nullptr) saved[pair * saved_per_pair + unit] = linear;
    coefficient[pair * m + unit] = gate[pair] * value;
  }
};

template <ExpertActivation kActivation, class T>
void hidden_units(const DeviceExpertTable<T>& table, const T* hidden, int64_t d,
                  const PairWork& work, const float* gate, float* saved, float* coefficient,
                  cudaStream_t stream) {
  const int m = static_cast<int>(table.expert_dim);
  const int per_pair = static_cast<int>(table.saved_per_pair());
  if constexpr (kActivation == ExpertActivation::swiglu) {
    pair_scores(work, hidden, d, table.gate_proj, m, Store{saved + m, per_pair}, stream);
  }
  pair_scores(work, hidden, d, table.up, m,
              HiddenUnits<kActivation>{gate, saved, coefficient, m, per_pair}, stream);
}

template <class T>
void forward_pairs(const DeviceExpertTable<T>& table, const T* hidden, int64_t d,
                   const PairWork& work, const float* gate, float* y, float* saved,
                   ExpertWorkspace& workspace, cudaStream_t stream) {
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  const PairTiles& tiles = work.tiles;
  if (tiles.tokens.tokens == 0) return;
  workspace.coefficient.ensure(tiles.pairs() * table.expert_dim);
  float* const coefficient = workspace.coefficient.data();
  if (table.gated() && saved == nullptr) {
    workspace.saved.ensure(tiles.pairs() * table.saved_per_pair());
    saved = workspace.saved.data();
  }
  const auto run = [&]<ExpertActivation kActivation>() {
    hidden_units<kActivation>(table, hidden, d, work, gate, saved, coefficient, stream);
  };
  switch (table.activation) {
    case ExpertActivation::gelu:
      run.template operator()<ExpertActivation::gelu>();
      break;
    case ExpertActivation::silu:
      run.template operator()<ExpertActivation::silu>();
      break;
    case ExpertActivation::relu:
      run.template operator()<ExpertActivation::relu>();
      break;
    case ExpertActivation::swiglu:
      run.template operator()<ExpertActivation::swiglu>();
      break;
  }
  const airmoe::cuda::CombineTerm<T> term{coefficient, table.down, table.expert_dim};
  airmoe::cuda::combine_pairs<T>(tiles, {&term, 1}, d, y, stream);
}

}  // namespace

template <class T>
void forward(const DeviceExpertTable<T>& table, const T* hidden, int64_t d, const PairTiles& tiles,
             const float* gate, float* y, float* saved, ExpertWorkspace& workspace,
             cudaStream_t stream) {
  forward_pairs<T>(table, hidden, d, {tiles, nullptr}, gate, y, saved, workspace, stream);
}

template <class T>
void forward_grouped(const DeviceExpertTable<T>& table, const T* hidden, int64_t d,
                     const PairTiles& tiles, const PairGroups& groups, const float* gate, float* y,
                     float* saved, ExpertWorkspace& workspace, cudaStream_t stream) {
  forward_pairs<T>(table, hidden, d, {tiles, &groups}, gate, y, saved, workspace, stream);
}

template void forward<float>(const DeviceExpertTable<float>&, const float*, int64_t,
                             const PairTiles&, const float*, float*, float*, ExpertWorkspace&,
                             cudaStream_t);
template void forward_grouped<float>(const DeviceExpertTable<float>&, const float*, int64_t,
                                     const PairTiles&, const PairGroups&, const float*, float*,
                                     float*, ExpertWorkspace&, cudaStream_t);
template void forward<__nv_bfloat16>(const DeviceExpertTable<__nv_bfloat16>&, const __nv_bfloat16*,
                                     int64_t, const PairTiles&, const float*, float*, float*,
                                     ExpertWorkspace&, cudaStream_t);
template void forward_grouped<__nv_bfloat16>(const DeviceExpertTable<__nv_bfloat16>&,
                                             const __nv_bfloat16*, int64_t, const PairTiles&,
                                             const PairGroups&, const float*, float*, float*,
                                             ExpertWorkspace&, cudaStream_t);

}  // namespace airmoe::experts::cuda
