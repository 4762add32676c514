#pragma once
// Expert-centric execution: the selected pairs of all tokens, sorted by expert; each expert's
// tokens, read in place by index, are multiplied with its m rows and its output is added to them.
// Work is K * m * d per token: the right path for small K / M or large m. Memory: three numbers per
// pair for the grouping and a fixed number of hidden units at a time, never tokens x K x d.

#include "comm/base/pair_accumulate.hpp"
#include "comm/base/pair_grouping.hpp"
#include "comm/base/panel.hpp"
#include "comm/base/selection.hpp"
#include "experts/expert_table.hpp"
#include "experts/pair_buffers.hpp"

namespace airmoe::experts {

/// Scratch; grows to the largest chunk seen, then allocates nothing.
struct GroupedWorkspace {
  PanelWorkspace panel;
  PairAccumulateWorkspace accumulate;
  PairBuffers pairs;
  Buffer<float> out;      ///< one expert's outputs
  Buffer<int32_t> count;  ///< 0, 1, 2, ...
  Buffer<double> quantum;

  /// The numbers 0 .. n-1.
  const int32_t* in_order(int64_t n);
};

/// y(t, :) += sum over pairs of gate * expert(hidden(t, :)), experts in float, their sum in double.
/// @param selection  positions are local expert rows here (not places in a shortlist)
/// @param grouping   built of it; the backward takes the same one
/// @param saved      see forward_dense; may be nullptr
/// Local; throws Error when shapes disagree.
void forward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                     SelectionView selection, float* saved, MatrixView<double> y,
                     GroupedWorkspace& workspace);

/// Same contract as backward_dense, over all tokens at once. Local.
void backward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                      SelectionView selection, const float* saved, ConstMatrix d_y, float* d_gate,
                      const double* quantum, MatrixView<double> d_hidden,
                      const ExpertGradients& gradients, GroupedWorkspace& workspace);

}  // namespace airmoe::experts
