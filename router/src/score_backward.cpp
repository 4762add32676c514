#include "router/score_backward.hpp"

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/pair_combine.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "router/src/score_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe::router {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// dw += s * h.
void add_pair(float s, const float* HWY_RESTRICT h, float* HWY_RESTRICT dw, int64_t dim) {
  const hn::CappedTag<float, kTileLanes> d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const auto scale = hn::Set(d, s);
  int64_t k = 0;
  for (; k + kLanes <= dim; k += kLanes) {
    hn::StoreU(hn::MulAdd(scale, hn::LoadU(d, h + k), hn::LoadU(d, dw + k)), d, dw + k);
  }
  for (; k < dim; ++k) dw[k] += s * h[k];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe::router
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe::router {

HWY_EXPORT(add_pair);

namespace {

void check_shapes(ConstMatrix unit_centroids, ConstMatrix hidden, const SelectionView& selection,
                  MatrixView<double> d_hidden, Matrix d_unit) {
  const int64_t dim = unit_centroids.cols;
  AIRMOE_CHECK(hidden.cols == dim && d_hidden.cols == dim && d_unit.cols == dim &&
                   hidden.rows == selection.tokens && d_hidden.rows == selection.tokens &&
                   d_unit.rows == unit_centroids.rows,
               "score_backward: {} tokens, hidden [{}, {}], d_hidden [{}, {}], unit [{}, {}], "
               "d_unit [{}, {}]",
               selection.tokens, hidden.rows, hidden.cols, d_hidden.rows, d_hidden.cols,
               unit_centroids.rows, dim, d_unit.rows, d_unit.cols);
}

}  // namespace

void score_backward_dense(ConstMatrix unit_centroids, const int32_t* candidates, int64_t count,
                          ConstMatrix hidden, SelectionView selection, const float* d_score,
                          const double* quantum, MatrixView<double> d_hidden, Matrix d_unit,
                          ScoreBackwardWorkspace& workspace) {
  check_shapes(unit_centroids, hidden, selection, d_hidden, d_unit);
  const int64_t n = selection.tokens;
  if (n == 0 || selection.offset[n] == selection.offset[0]) return;
  // Candidates that some token selects, in candidate order, become the rows of the tile.
  constexpr int32_t kUnused = -1;
  workspace.place.ensure(count);
  workspace.place.fill(kUnused);
  for (int64_t p = selection.offset[0]; p < selection.offset[n]; ++p) {
    AIRMOE_ASSERT(selection.position[p] >= 0 && selection.position[p] < count);
    workspace.place[selection.position[p]] = 0;
  }
  workspace.rows.ensure(count);
  int32_t used = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (workspace.place[i] == kUnused) continue;
    workspace.rows[used] = candidates[i];
    workspace.place[i] = used++;
  }
  const int64_t ld = tile_ld(n);
  workspace.tile.ensure(used * ld);
  workspace.tile.fill(0.0f);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      workspace.tile[workspace.place[selection.position[p]] * ld + t] = d_score[p];
    }
  }
  pair_combine(unit_centroids, candidates, selection, d_score + selection.offset[0], 1, quantum,
               d_hidden);
  const Panel d_panel{d_unit.data, workspace.rows.data(), used, d_unit.cols, d_unit.ld};
  panel_accumulate(d_panel, workspace.tile.data(), hidden, workspace.panel);
}

void score_backward_pairs(ConstMatrix unit_centroids, ConstMatrix hidden, SelectionView selection,
                          const float* d_score, const double* quantum, MatrixView<double> d_hidden,
                          Matrix d_unit) {
  check_shapes(unit_centroids, hidden, selection, d_hidden, d_unit);
  if (selection.tokens == 0) return;
  pair_combine(unit_centroids, nullptr, selection, d_score + selection.offset[0], 1, quantum,
               d_hidden);
  const auto add = HWY_DYNAMIC_DISPATCH(add_pair);
  for (int64_t t = 0; t < selection.tokens; ++t) {
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      const int64_t row = selection.position[p];
      add(d_score[p], hidden.row(t), d_unit.row(row), hidden.cols);
    }
  }
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
#endif  // HWY_ONCE
