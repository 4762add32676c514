#pragma once
// Expert-centric execution: the selected pairs of all tokens, sorted by expert; each expert's
// tokens, read in place by index, are multiplied with its m rows and its output is added to them.
// Work is K * m * d per token: the right path for small K / M or large m. Memory: three numbers per
// pair for the grouping and a fixed number of hidden units at a time, never tokens x K x d.

#include "comm/base/panel.hpp"
#include "comm/base/selection.hpp"
#include "experts/expert_table.hpp"
#include "experts/pair_buffers.hpp"

namespace airmoe::experts {

/// Pairs in expert order. Built once per forward, used again by the backward. No O(E) work per call
/// (the map over local experts is reset through the list of experts touched).
class PairGrouping {
 public:
  /// @param selection  positions are local expert rows here (not places in a shortlist)
  /// Local. Work: O(pairs + touched log touched); O(local experts) once, when that number grows.
  void build(SelectionView selection, int64_t local_experts);

  int64_t pairs() const { return pair_.size(); }
  int64_t groups() const { return groups_; }
  int32_t expert(int64_t group) const { return touched_[group]; }  ///< ascending
  int64_t begin(int64_t group) const { return group_begin_[group]; }
  int64_t end(int64_t group) const { return group_begin_[group + 1]; }
  int64_t largest_group() const { return largest_; }
  int64_t pair(int64_t i) const { return pair_[i]; }    ///< index into selection arrays
  int32_t token(int64_t i) const { return token_[i]; }  ///< ascending within a group
  const int32_t* tokens() const { return token_.data(); }

 private:
  int64_t groups_ = 0, largest_ = 0;
  Buffer<int32_t> slot_of_expert_, touched_, token_;
  Buffer<int64_t> group_begin_, pair_;
  int64_t map_size_ = 0;
};

/// Scratch; grows to the largest chunk seen, then allocates nothing.
struct GroupedWorkspace {
  PanelWorkspace panel;
  PairBuffers pairs;
  Buffer<float> out;      ///< one expert's outputs
  Buffer<int32_t> count;  ///< 0, 1, 2, ...
  Buffer<double> quantum;

  /// The numbers 0 .. n-1.
  const int32_t* in_order(int64_t n);
};

/// y(t, :) += sum over pairs of gate * expert(hidden(t, :)), experts in float, their sum in double.
/// saved: see forward_dense; may be nullptr. y(t) receives experts in ascending id. Local; throws
/// Error when shapes disagree.
void forward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                     SelectionView selection, float* saved, MatrixView<double> y,
                     GroupedWorkspace& workspace);

/// Same contract as backward_dense, over all tokens at once. Local.
void backward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                      SelectionView selection, const float* saved, ConstMatrix d_y, float* d_gate,
                      const double* quantum, MatrixView<double> d_hidden,
                      const ExpertGradients& gradients, GroupedWorkspace& workspace);

}  // namespace airmoe::experts
