#pragma once
// Gradient of fine scoring: z_e = <h, w_e> for the selected pairs (paper, "Forward" 4).

#include "comm/base/panel.hpp"
#include "comm/base/selection.hpp"

namespace airmoe::router {

struct ScoreBackwardWorkspace {
  PanelWorkspace panel;
  Buffer<float> tile;
  Buffer<int32_t> place, rows;
};

/// One codeword's tokens against its resident candidates, as dense products.
/// d_hidden(t) += sum_p d_score[p] * unit(candidate_p);  d_unit(candidate_p) += d_score[p] *
/// hidden(t).
/// @param quantum     of the sums in d_hidden, see pair_combine.hpp. Shape: [n]
/// @param candidates  rows of unit_centroids, distinct; selection positions index it. Shape:
/// [count]
/// @param hidden      Shape: [n, d]; callers keep n <= 64 so that tiles stay in cache
/// @param d_score     one per pair, index as in selection
/// @param d_unit      Shape as unit_centroids; only rows of selected candidates are touched
/// Candidates that no token selects are left out of the products. Local.
void score_backward_dense(ConstMatrix unit_centroids, const int32_t* candidates, int64_t count,
                          ConstMatrix hidden, SelectionView selection, const float* d_score,
                          const double* quantum, MatrixView<double> d_hidden, Matrix d_unit,
                          ScoreBackwardWorkspace& workspace);

/// The same pair by pair; positions are rows of unit_centroids. For small K / M. Local.
void score_backward_pairs(ConstMatrix unit_centroids, ConstMatrix hidden, SelectionView selection,
                          const float* d_score, const double* quantum, MatrixView<double> d_hidden,
                          Matrix d_unit);

/// d_score[p] = gate[p] * (d_gate[p] - dot[t]), dot[t] = sum of gate * d_gate over ALL of the
/// token's pairs on all ranks. Shapes: [pairs], [tokens], [pairs]. d_score may be d_gate. Local.
void softmax_backward(SelectionView selection, const float* d_gate, const float* dot,
                      float* d_score);

}  // namespace airmoe::router
