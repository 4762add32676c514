#pragma once
// Shortlist-dense execution: all tokens of one codeword times all its resident candidates as dense
// products, masked by the gate (design: "Experts"). Work per token is M_resident * m * d, whatever
// K is, with no gather: the right path for large K / M and small m. Candidates that no token of the
// block selects are left out of every product.

#include "comm/base/pair_accumulate.hpp"
#include "comm/base/pair_combine.hpp"
#include "comm/base/panel.hpp"
#include "comm/base/selection.hpp"
#include "experts/expert_table.hpp"
#include "experts/pair_buffers.hpp"

namespace airmoe::experts {

/// Tokens of one codeword and the codeword's resident candidates.
struct DenseBlock {
  ConstMatrix hidden;  ///< Shape: [n, d]; callers keep n <= 64 so that tiles stay in cache
  const int32_t* candidates = nullptr;  ///< local expert rows, distinct. Shape: [count]
  int64_t count = 0;
  SelectionView selection;  ///< positions index `candidates`
};

/// Scratch; grows to the largest block seen, then allocates nothing.
struct DenseWorkspace {
  PanelWorkspace panel;
  PairAccumulateWorkspace accumulate;
  PairBuffers pairs;
  Buffer<float> tile;  ///< one tile of the used candidates' rows
  Buffer<int32_t> rows, place, element;
  Buffer<double> quantum;
};

/// y(t, :) += sum over pairs of gate * expert(hidden(t, :)).
/// @param saved  pre-activations of the pairs, for the backward. Shape: [pairs * saved_per_pair()];
///               pair p (index as in selection) at p * saved_per_pair(). nullptr: not saved.
/// @param y      in double, see pair_combine.hpp. Shape: [n, d]
/// y(t, :) is one chain of additions in candidate order: its bits do not depend on how tokens are
/// split into blocks. Local; throws Error when shapes disagree.
void forward_dense(const ExpertTable& table, const DenseBlock& block, float* saved,
                   MatrixView<double> y, DenseWorkspace& workspace);

/// Gradients for d_y(t, :), the gradient of y.
/// @param grouping  built of block.selection and block.count; score_backward_dense takes it too
/// @param saved     as written by forward_dense (or forward_grouped)
/// @param d_gate    written: <d_y(t), expert(h_t)> of each pair. Shape: [pairs]
/// @param quantum   of the sums in d_hidden, see pair_combine.hpp. Shape: [n]
/// @param d_hidden  added to, in double. Shape: [n, d]
/// @param gradients added to; only rows of selected candidates are touched
/// Nothing depends on how tokens are split into blocks. Local; throws Error when shapes disagree.
void backward_dense(const ExpertTable& table, const DenseBlock& block, const PairGrouping& grouping,
                    const float* saved, ConstMatrix d_y, float* d_gate, const double* quantum,
                    MatrixView<double> d_hidden, const ExpertGradients& gradients,
                    DenseWorkspace& workspace);

}  // namespace airmoe::experts
