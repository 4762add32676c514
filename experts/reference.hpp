#pragma once
// What an expert computes, in plain loops and double precision: the specification that both
// execution paths are tested against. Slow on purpose; positions are local expert rows here.

#include <vector>

#include "comm/base/matrix_view.hpp"
#include "comm/base/selection.hpp"
#include "experts/expert_table.hpp"

namespace airmoe::experts::reference {

using ConstMatrix64 = MatrixView<const double>;

/// ExpertTable in double precision; same shapes.
struct Table {
  ConstMatrix64 up, down, gate_proj;
  int64_t expert_dim = 1;
  ExpertActivation activation = ExpertActivation::gelu;
};

/// f(x) and f'(x); swiglu's f is silu. gelu is x * Phi(x) with erf; relu'(0) = 0.
double activation_value(ExpertActivation activation, double x);
double activation_slope(ExpertActivation activation, double x);

/// sum over pairs of gate * expert(hidden(t, :)).
/// @param hidden  Shape: [n, d]
/// @param gate    weights of the pairs; selection.gate is not read. Indexed like selection.position
/// @return Shape: [n, d]. Local.
std::vector<double> forward(const Table& table, ConstMatrix64 hidden, SelectionView selection,
                            const double* gate);

/// Gradients of <d_y, forward(...)>, row-major, of the shapes of what they belong to; `gate` is
/// indexed like selection.position, from offset[0].
struct Gradients {
  std::vector<double> up, down, gate_proj, hidden, gate;
};
Gradients backward(const Table& table, ConstMatrix64 hidden, SelectionView selection,
                   const double* gate, ConstMatrix64 d_y);

}  // namespace airmoe::experts::reference
