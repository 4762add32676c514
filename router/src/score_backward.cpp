#include "router/score_backward.hpp"

#include "comm/base/error.hpp"
#include "comm/base/pair_combine.hpp"

namespace airmoe::router {

void score_backward(ConstMatrix unit_centroids, const int32_t* candidates, ConstMatrix hidden,
                    SelectionView selection, const PairGrouping& grouping, const float* d_score,
                    const double* quantum, MatrixView<double> d_hidden, double unit_quantum,
                    MatrixView<double> d_unit, PairAccumulateWorkspace& workspace) {
  const int64_t dim = unit_centroids.cols;
  AIRMOE_CHECK(hidden.cols == dim && d_hidden.cols == dim && d_unit.cols == dim &&
                   hidden.rows == selection.tokens && d_hidden.rows == selection.tokens &&
                   d_unit.rows >= unit_centroids.rows,
               "score_backward: {} tokens, hidden [{}, {}], d_hidden [{}, {}], unit [{}, {}], "
               "d_unit [{}, {}]",
               selection.tokens, hidden.rows, hidden.cols, d_hidden.rows, d_hidden.cols,
               unit_centroids.rows, dim, d_unit.rows, d_unit.cols);
  if (selection.tokens == 0) return;
  const float* first = d_score + selection.offset[0];
  pair_combine(unit_centroids, candidates, selection, first, 1, quantum, d_hidden);
  pair_accumulate(grouping, candidates, first, 1, hidden, unit_quantum, d_unit, workspace);
}

void softmax_backward(SelectionView selection, const float* d_gate, const float* dot,
                      float* d_score) {
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      d_score[p] = selection.gate[p] * (d_gate[p] - dot[t]);
    }
  }
}

}  // namespace airmoe::router
