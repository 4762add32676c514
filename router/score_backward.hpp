#pragma once
// Gradient of fine scoring: z_e = <h, w_e> for the selected pairs (paper, "Forward" 4).

#include "comm/base/pair_accumulate.hpp"
#include "comm/base/selection.hpp"

namespace airmoe::router {

/// Gradients of the selected pairs of tokens that share candidates (or none):
/// d_hidden(t) += sum_p d_score[p] * unit(row(p));  d_unit(row(p)) += d_score[p] * hidden(t), with
/// row(p) = candidates[position[p]], or position[p] itself when candidates is nullptr.
/// Both are exact sums (pair_combine.hpp, pair_accumulate.hpp): blocks, order and rank do not show.
/// @param candidates    rows of unit_centroids, distinct
/// @param hidden        Shape: [n, d]
/// @param grouping      built of `selection`
/// @param d_score       one per pair, index as in selection
/// @param quantum       of the sums in d_hidden. Shape: [n]
/// @param unit_quantum  of those in d_unit: expert_gradient_quantum(E)
/// @param d_unit        Shape as unit_centroids or with more rows; only rows of selected candidates
///                      are touched
/// Local. Throws Error when shapes disagree.
void score_backward(ConstMatrix unit_centroids, const int32_t* candidates, ConstMatrix hidden,
                    SelectionView selection, const PairGrouping& grouping, const float* d_score,
                    const double* quantum, MatrixView<double> d_hidden, double unit_quantum,
                    MatrixView<double> d_unit, PairAccumulateWorkspace& workspace);

/// d_score[p] = gate[p] * (d_gate[p] - dot[t]), dot[t] = sum of gate * d_gate over ALL of the
/// token's pairs on all ranks. Shapes: [pairs], [tokens], [pairs]. d_score may be d_gate. Local.
void softmax_backward(SelectionView selection, const float* d_gate, const float* dot,
                      float* d_score);

}  // namespace airmoe::router
