#include <cuda_bf16.h>

#include "comm/base/cuda/pair_combine.hpp"
#include "experts/cuda/dense_path.hpp"
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
                  const PairTiles& tiles, const float* gate, float* saved, float* coefficient,
                  cudaStream_t stream) {
  const int m = static_cast<int>(table.expert_dim);
  const int per_pair = static_cast<int>(table.saved_per_pair());
  if constexpr (kActivation == ExpertActivation::swiglu) {
    pair_scores(tiles, hidden, d, table.gate_proj, m, Store{saved + m, per_pair}, stream);
  }
  pair_scores(tiles, hidden, d, table.up, m,
              HiddenUnits<kActivation>{gate, saved, coefficient, m, per_pair}, stream);
}

}  // namespace

template <class T>
void forward(const DeviceExpertTable<T>& table, const T* hidden, int64_t d, const PairTiles& tiles,
             const float* gate, float* y, float* saved, ExpertWorkspace& workspace,
             cudaStream_t stream) {
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  if (tiles.tokens.tokens == 0) return;
  workspace.coefficient.ensure(tiles.pairs() * table.expert_dim);
  float* const coefficient = workspace.coefficient.data();
  if (table.gated() && saved == nullptr) {
    workspace.saved.ensure(tiles.pairs() * table.saved_per_pair());
    saved = workspace.saved.data();
  }
  switch (table.activation) {
    case ExpertActivation::gelu:
      hidden_units<ExpertActivation::gelu>(table, hidden, d, tiles, gate, saved, coefficient,
                                           stream);
      break;
    case ExpertActivation::silu:
      hidden_units<ExpertActivation::silu>(table, hidden, d, tiles, gate, saved, coefficient,
                                           stream);
      break;
    case ExpertActivation::relu:
      hidden_units<ExpertActivation::relu>(table, hidden, d, tiles, gate, saved, coefficient,
                                           stream);
      break;
    case ExpertActivation::swiglu:
      hidden_units<ExpertActivation::swiglu>(table, hidden, d, tiles, gate, saved, coefficient,
                                             stream);
      break;
  }
  const airmoe::cuda::CombineTerm<T> term{coefficient, table.down, table.expert_dim};
  airmoe::cuda::combine_pairs<T>(tiles, {&term, 1}, d, y, stream);
}

template void forward<float>(const DeviceExpertTable<float>&, const float*, int64_t,
                             const PairTiles&, const float*, float*, float*, ExpertWorkspace&,
                             cudaStream_t);
template void forward<__nv_bfloat16>(const DeviceExpertTable<__nv_bfloat16>&, const __nv_bfloat16*,
                                     int64_t, const PairTiles&, const float*, float*, float*,
                                     ExpertWorkspace&, cudaStream_t);

}  // namespace airmoe::experts::cuda
