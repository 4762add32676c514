#include "experts/grouped_path.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"
#include "experts/src/pair_math.hpp"
#include "experts/src/row_kernels.hpp"
#include "experts/src/unit_layout.hpp"

namespace airmoe::experts {
namespace {

constexpr int64_t kChunkUnits = 16384;  // hidden units computed at a time: 64 KiB per compact array
constexpr int64_t kTileMinTokens = 4;   // packing an expert's rows has to serve a few tokens

/// The part of one expert's pairs that lies in the chunk at hand.
struct Segment {
  int64_t first_row = 0;  ///< of the expert in the tables
  int64_t m = 1;
  const int32_t* token = nullptr;
  int64_t count = 0;
  int64_t begin = 0;  ///< first pair within the chunk's compact arrays
};

/// out(i, j) = <x(token_i), row j>. With tiles the tokens are the panel and the expert's rows are
/// its right-hand side, which is a gather-free product. The two ways round differently, so the
/// choice must not look at how many of an expert's tokens happen to be here.
void scores(const Segment& s, ConstMatrix matrix, ConstMatrix x, float* out,
            PanelWorkspace& workspace) {
  const ConstMatrix rows = matrix.slice_rows(s.first_row, s.m);
  out += s.begin * unit_stride(s.m);
  if (s.m >= kTileMinUnits) {
    panel_scores({x.data, s.token, s.count, x.cols, x.ld}, rows, out, workspace);
  } else {
    row_scores(rows, {x, s.token, s.count}, out, unit_stride(s.m));
  }
}

/// y(token_i) += sum_j coefficient(i, j) * row j: one expert's part in float, experts in double.
void combine(const Segment& s, ConstMatrix matrix, const float* coefficient, const double* quantum,
             MatrixView<double> y, GroupedWorkspace& workspace) {
  const ConstMatrix rows = matrix.slice_rows(s.first_row, s.m);
  coefficient += s.begin * unit_stride(s.m);
  workspace.out.ensure(s.count * y.cols);
  workspace.out.fill(0.0f);
  const Matrix out(workspace.out.data(), s.count, y.cols);
  const int32_t* in_order = workspace.in_order(s.count);
  if (s.m >= kTileMinUnits && s.count >= kTileMinTokens) {  // the same bits either way
    panel_accumulate({out.data, in_order, s.count, out.cols, out.ld}, coefficient, rows,
                     workspace.panel);
  } else {
    row_combine(rows, coefficient, unit_stride(s.m), {out, in_order, s.count});
  }
  for (int64_t i = 0; i < s.count; ++i) {
    const float* __restrict from = out.row(i);
    double* __restrict to = y.row(s.token[i]);
    const double rounding = rounding_constant(quantum[s.token[i]]);
    for (int64_t k = 0; k < y.cols; ++k) {
      to[k] += round_to_quantum(static_cast<double>(from[k]), rounding);
    }
  }
}

/// row j += sum_i coefficient(i, j) * x(token_i), exactly.
void accumulate(const Segment& s, MatrixView<double> matrix, const float* coefficient,
                ConstMatrix x, double quantum, PairAccumulateWorkspace& workspace) {
  const int64_t stride = unit_stride(s.m);
  row_accumulate(s.token, s.count, coefficient + s.begin * stride, stride, x, quantum,
                 matrix.slice_rows(s.first_row, s.m), workspace);
}

/// Pairs [begin, end) of the grouping, whose first pair belongs to group first_group.
struct Chunk {
  const PairGrouping& grouping;
  int64_t m, begin, end, first_group;

  /// body(segment) for the experts of the chunk, in ascending order.
  template <class Body>
  void for_each_segment(Body body) const {
    for (int64_t g = first_group; g < grouping.groups() && grouping.begin(g) < end; ++g) {
      const int64_t from = std::max(begin, grouping.begin(g));
      const int64_t to = std::min(end, grouping.end(g));
      body(Segment{grouping.position(g) * m, m, grouping.tokens() + from, to - from, from - begin});
    }
  }
  auto index_of() const {
    return [this](int64_t i) { return grouping.pair(begin + i); };
  }
};

/// body(chunk) for consecutive chunks that together hold all pairs. A chunk holds whole experts, or
/// a part of one that is larger than a chunk, counted from its first pair: how an expert's pairs
/// are cut does not depend on which other experts are here.
template <class Body>
void for_each_chunk(const PairGrouping& grouping, int64_t m, Body body) {
  const int64_t size = std::max<int64_t>(1, kChunkUnits / unit_stride(m));
  int64_t group = 0;
  int64_t begin = 0;
  while (begin < grouping.pairs()) {
    int64_t last = group;
    while (last + 1 < grouping.groups() && grouping.end(last + 1) - begin <= size) ++last;
    const int64_t end = std::min(grouping.end(last), begin + size);
    body(Chunk{grouping, m, begin, end, group});
    begin = end;
    group = end == grouping.end(last) ? last + 1 : last;
  }
}

PairArrays make_chunk_arrays(const ExpertTable& table, const Chunk& chunk, Pass pass,
                             PairBuffers& buffers) {
  const int64_t stride = unit_stride(table.expert_dim);
  PairArrays pairs = make_pair_arrays(table, chunk.end - chunk.begin, stride, pass, buffers);
  if (stride == pairs.m) return pairs;
  for (float* array : {pairs.linear, pairs.inner, pairs.d_unit}) {  // padding: defined, not used
    if (array != nullptr) std::fill_n(array, pairs.count * stride, 0.0f);
  }
  return pairs;
}

void check_shapes(const ExpertTable& table, ConstMatrix hidden, SelectionView selection) {
  AIRMOE_CHECK(selection.tokens == hidden.rows, "{} tokens, selection of {}", hidden.rows,
               selection.tokens);
  AIRMOE_CHECK(hidden.cols == table.up.cols, "tokens of width {}, experts of width {}", hidden.cols,
               table.up.cols);
}

}  // namespace

const int32_t* GroupedWorkspace::in_order(int64_t n) {
  if (n > count.size()) {
    count.ensure(n);
    std::iota(count.begin(), count.end(), 0);
  }
  return count.data();
}

void forward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                     SelectionView selection, float* saved, MatrixView<double> y,
                     GroupedWorkspace& workspace) {
  check_shapes(table, hidden, selection);
  workspace.quantum.ensure(hidden.rows);
  workspace.quantum.fill(kOutputQuantum);
  PanelWorkspace& scratch = workspace.panel;
  for_each_chunk(grouping, table.expert_dim, [&](const Chunk& chunk) {
    const PairArrays pairs = make_chunk_arrays(table, chunk, Pass::forward, workspace.pairs);
    chunk.for_each_segment([&](const Segment& segment) {
      scores(segment, table.up, hidden, pairs.linear, scratch);
      if (is_gated(table)) scores(segment, table.gate_proj, hidden, pairs.inner, scratch);
    });
    if (saved != nullptr) save_pre_activations(pairs, chunk.index_of(), saved);
    hidden_units(table.activation, pairs);
    multiply_gates(pairs, chunk.index_of(), selection.gate);
    chunk.for_each_segment([&](const Segment& segment) {
      combine(segment, table.down, pairs.unit, workspace.quantum.data(), y, workspace);
    });
  });
}

void backward_grouped(const ExpertTable& table, const PairGrouping& grouping, ConstMatrix hidden,
                      SelectionView selection, const float* saved, ConstMatrix d_y, float* d_gate,
                      const double* quantum, MatrixView<double> d_hidden,
                      const ExpertGradients& gradients, GroupedWorkspace& workspace) {
  check_shapes(table, hidden, selection);
  PanelWorkspace& scratch = workspace.panel;
  const auto add_rows = [&](const Segment& segment, const float* coefficient, ConstMatrix x,
                            MatrixView<double> rows) {
    accumulate(segment, rows, coefficient, x, gradients.quantum, workspace.accumulate);
  };
  for_each_chunk(grouping, table.expert_dim, [&](const Chunk& chunk) {
    const PairArrays pairs = make_chunk_arrays(table, chunk, Pass::backward, workspace.pairs);
    chunk.for_each_segment(
        [&](const Segment& segment) { scores(segment, table.down, d_y, pairs.d_unit, scratch); });
    load_pre_activations(saved, chunk.index_of(), pairs);
    hidden_units_with_slope(table.activation, pairs);
    pair_gradients(pairs, chunk.index_of(), selection.gate, d_gate);
    chunk.for_each_segment([&](const Segment& segment) {
      add_rows(segment, pairs.unit, d_y, gradients.down);
      add_rows(segment, pairs.slope_linear, hidden, gradients.up);
      combine(segment, table.up, pairs.slope_linear, quantum, d_hidden, workspace);
      if (is_gated(table)) {
        add_rows(segment, pairs.slope_inner, hidden, gradients.gate_proj);
        combine(segment, table.gate_proj, pairs.slope_inner, quantum, d_hidden, workspace);
      }
    });
  });
}

}  // namespace airmoe::experts
