#pragma once
// Parameters of the experts that live on this rank.

#include <cstdint>

#include "comm/base/matrix_view.hpp"

namespace airmoe::experts {

/// What an expert computes from its m up rows u_j and down rows v_j:
/// gelu, silu, relu: sum_j f(<h, u_j>) v_j.
/// swiglu: sum_j silu(<h, g_j>) <h, u_j> v_j with a third matrix g (gate_proj).
enum class ExpertActivation : uint8_t { gelu, silu, relu, swiglu };

/// Local expert e holds rows [e * m, (e + 1) * m) of each matrix.
struct ExpertTable {
  ConstMatrix up;          ///< Shape: [local experts * m, d]
  ConstMatrix down;        ///< Shape: [local experts * m, d]
  ConstMatrix gate_proj;   ///< Shape: [local experts * m, d]; swiglu only, otherwise empty
  int64_t expert_dim = 1;  ///< m
  ExpertActivation activation = ExpertActivation::gelu;

  /// Pre-activations saved per selected pair for the backward: m, or 2 m for swiglu.
  int64_t saved_per_pair() const {
    return activation == ExpertActivation::swiglu ? 2 * expert_dim : expert_dim;
  }
};

/// Gradients of the same shapes; every function adds to them. They are exact sums of products that
/// were rounded to multiples of `quantum` (comm/base/pair_accumulate.hpp): the same bits for the
/// same pairs, whichever path computed them, in whatever blocks and order.
struct ExpertGradients {
  MatrixView<double> up, down, gate_proj;
  double quantum = 0;  ///< expert_gradient_quantum(E)
};

}  // namespace airmoe::experts
