#include "experts/dense_path.hpp"

#include <algorithm>
#include <limits>

#include "comm/base/error.hpp"
#include "experts/src/pair_math.hpp"

namespace airmoe::experts {
namespace {

/// What one call works on. Candidates that no token of the block selects are left out: their
/// column of the gate mask is zero, so they add nothing to any result.
struct Plan {
  int64_t m = 1;
  int64_t first_pair = 0, pairs = 0;
  int64_t ld = 0;                    ///< of the tiles
  int64_t rows = 0;                  ///< panel rows: used candidates times m
  const int32_t* row = nullptr;      ///< rows of the tables. Shape: [rows]
  const int32_t* element = nullptr;  ///< tile element of hidden unit 0 of each pair. Shape: [pairs]

  auto index_of() const {
    return [first = first_pair](int64_t i) { return first + i; };
  }
  ConstPanel panel(ConstMatrix matrix) const {
    return {matrix.data, row, rows, matrix.cols, matrix.ld};
  }
};

Plan make_plan(const ExpertTable& table, const DenseBlock& block, DenseWorkspace& workspace) {
  const SelectionView& selection = block.selection;
  const int64_t tokens = block.hidden.rows;
  AIRMOE_CHECK(selection.tokens == tokens, "{} tokens, selection of {}", tokens, selection.tokens);
  AIRMOE_CHECK(block.hidden.cols == table.up.cols, "tokens of width {}, experts of width {}",
               block.hidden.cols, table.up.cols);
  Plan plan{.m = table.expert_dim};
  if (tokens == 0) return plan;
  plan.first_pair = selection.offset[0];
  plan.pairs = selection.offset[tokens] - plan.first_pair;
  plan.ld = tile_ld(tokens);
  AIRMOE_CHECK(std::max(block.count * plan.m * plan.ld, table.up.rows) <=
                   std::numeric_limits<int32_t>::max(),
               "a block of {} candidates x {} hidden units x {} tokens is too large", block.count,
               plan.m, tokens);

  // place[i]: tile element of candidate i and token 0, or kUnused.
  constexpr int32_t kUnused = -1;
  Buffer<int32_t>& place = workspace.place;
  place.ensure(block.count);
  place.fill(kUnused);
  const int32_t* position = selection.position + plan.first_pair;
  for (int64_t p = 0; p < plan.pairs; ++p) {
    AIRMOE_ASSERT(position[p] >= 0 && position[p] < block.count);
    place[position[p]] = 0;
  }
  workspace.rows.ensure(block.count * plan.m);
  for (int64_t i = 0; i < block.count; ++i) {
    if (place[i] == kUnused) continue;
    place[i] = static_cast<int32_t>(plan.rows * plan.ld);
    const auto first = static_cast<int32_t>(block.candidates[i] * plan.m);
    for (int32_t j = 0; j < plan.m; ++j) workspace.rows[plan.rows++] = first + j;
  }
  workspace.element.ensure(plan.pairs);
  for (int64_t t = 0, p = 0; t < tokens; ++t) {
    for (; p < selection.offset[t + 1] - plan.first_pair; ++p) {
      workspace.element[p] = place[position[p]] + static_cast<int32_t>(t);
    }
  }
  plan.row = workspace.rows.data();
  plan.element = workspace.element.data();
  workspace.tile.ensure(plan.rows * plan.ld);
  return plan;
}

/// compact[p * m + j] = tile element of pair p and its hidden unit j.
void gather_pairs(const Plan& plan, const float* tile, float* compact) {
  if (plan.m == 1) {
    for (int64_t p = 0; p < plan.pairs; ++p) compact[p] = tile[plan.element[p]];
    return;
  }
  for (int64_t p = 0; p < plan.pairs; ++p) {
    const float* column = tile + plan.element[p];
    for (int64_t j = 0; j < plan.m; ++j) compact[p * plan.m + j] = column[j * plan.ld];
  }
}

}  // namespace

void forward_dense(const ExpertTable& table, const DenseBlock& block, float* saved,
                   MatrixView<double> y, DenseWorkspace& workspace) {
  const Plan plan = make_plan(table, block, workspace);
  if (plan.pairs == 0) return;
  const PairArrays pairs =
      make_pair_arrays(table, plan.pairs, plan.m, Pass::forward, workspace.pairs);
  float* tile = workspace.tile.data();

  panel_scores(plan.panel(table.up), block.hidden, tile, workspace.panel);
  gather_pairs(plan, tile, pairs.linear);
  if (is_gated(table)) {
    panel_scores(plan.panel(table.gate_proj), block.hidden, tile, workspace.panel);
    gather_pairs(plan, tile, pairs.inner);
  }
  if (saved != nullptr) save_pre_activations(pairs, plan.index_of(), saved);
  hidden_units(table.activation, pairs);
  multiply_gates(pairs, plan.index_of(), block.selection.gate);
  const KernelTimer timer(workspace.panel.seconds);
  workspace.quantum.ensure(block.hidden.rows);
  workspace.quantum.fill(kOutputQuantum);
  pair_combine(table.down, block.candidates, block.selection, pairs.unit, plan.m,
               workspace.quantum.data(), y);
}

void backward_dense(const ExpertTable& table, const DenseBlock& block, const PairGrouping& grouping,
                    const float* saved, ConstMatrix d_y, float* d_gate, const double* quantum,
                    MatrixView<double> d_hidden, const ExpertGradients& gradients,
                    DenseWorkspace& workspace) {
  const Plan plan = make_plan(table, block, workspace);
  AIRMOE_CHECK(grouping.pairs() == plan.pairs, "a grouping of {} pairs for a selection of {}",
               grouping.pairs(), plan.pairs);
  if (plan.pairs == 0) return;
  const PairArrays pairs =
      make_pair_arrays(table, plan.pairs, plan.m, Pass::backward, workspace.pairs);

  load_pre_activations(saved, plan.index_of(), pairs);
  hidden_units_with_slope(table.activation, pairs);
  panel_scores(plan.panel(table.down), d_y, workspace.tile.data(), workspace.panel);
  gather_pairs(plan, workspace.tile.data(), pairs.d_unit);
  pair_gradients(pairs, plan.index_of(), block.selection.gate, d_gate);

  const auto accumulate = [&](const float* coefficient, ConstMatrix x, MatrixView<double> rows) {
    pair_accumulate(grouping, block.candidates, coefficient, plan.m, x, gradients.quantum, rows,
                    workspace.accumulate);
  };
  const auto combine = [&](const float* coefficient, ConstMatrix rows) {
    pair_combine(rows, block.candidates, block.selection, coefficient, plan.m, quantum, d_hidden);
  };
  accumulate(pairs.unit, d_y, gradients.down);
  accumulate(pairs.slope_linear, block.hidden, gradients.up);
  combine(pairs.slope_linear, table.up);
  if (is_gated(table)) {
    accumulate(pairs.slope_inner, block.hidden, gradients.gate_proj);
    combine(pairs.slope_inner, table.gate_proj);
  }
}

}  // namespace airmoe::experts
