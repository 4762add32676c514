#pragma once
// Matrix products with rows picked from a table by an index list: the tokens of one codeword
// against the centroids or expert vectors of its shortlist, without gathering the rows first.
//
// A *tile* is expert-major: element (i, t) is row i of the panel and token t, at data[i * ld + t].
// Tiles are 64-byte aligned and ld is a multiple of kTileLanes; columns from n up to the next
// multiple of kTileLanes are written as zero and never read.
//
// Rounding: every output element is one chain of fused multiply-adds in index order that starts at
// zero; panel_combine and panel_accumulate then add the chain to what is there, with one addition
// per call. So an element has the same bits however tokens or rows are grouped into blocks, and on
// every vector width. (Processors without fused multiply-add, x86 before AVX2, round each product
// as well: there the bits differ from other processors', not between blocks.)
//
// All functions: local; throw Error when shapes disagree; any count, cols and n, also zero; no
// allocation once the workspace has seen the largest block; read no table element beyond a row.

#include <chrono>
#include <type_traits>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe {

inline constexpr int64_t kTileLanes = 16;

/// Columns of a tile for n tokens.
constexpr int64_t tile_ld(int64_t n) {
  return (n + kTileLanes - 1) / kTileLanes * kTileLanes;
}

/// Panel row i is table + rows[i] * ld, `cols` elements.
template <class T>
struct PanelView {
  T* table = nullptr;
  const int32_t* rows = nullptr;  ///< Shape: [count], rows of the table, in any order
  int64_t count = 0;
  int64_t cols = 0;
  int64_t ld = 0;

  /// A view of float converts to a view of const float.
  operator PanelView<const T>() const requires(!std::is_const_v<T>) {
    return {table, rows, count, cols, ld};
  }
};
using ConstPanel = PanelView<const float>;
using Panel = PanelView<float>;

/// Scratch of the panel kernels; one per thread of execution, grows to the largest block seen.
struct PanelWorkspace {
  Buffer<float> packed;
  double seconds = 0;  ///< spent in the kernels so far, to tell the share of products in a run
};

/// Adds its lifetime to `seconds`.
class KernelTimer {
 public:
  explicit KernelTimer(double& seconds)
      : seconds_(seconds), start_(std::chrono::steady_clock::now()) {}
  ~KernelTimer() {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_;
};

/// tile(i, t) = sum_k panel(i, k) * x(t, k), k ascending.
/// @param x     tokens. Shape: [n, panel.cols]
/// @param tile  Shape: [panel.count, tile_ld(n)], leading dimension tile_ld(n)
/// FLOPs, here and below: 2 * count * n * cols.
void panel_scores(ConstPanel panel, ConstMatrix x, float* tile, PanelWorkspace& workspace);

/// y(t, k) += sum_i tile(i, t) * panel(i, k), i ascending.   Shape of y: [n, panel.cols]
void panel_combine(ConstPanel panel, const float* tile, Matrix y, PanelWorkspace& workspace);

/// panel(i, k) += sum_t tile(i, t) * x(t, k), t ascending.   Rows of the panel must be distinct.
void panel_accumulate(Panel panel, const float* tile, ConstMatrix x, PanelWorkspace& workspace);

/// The same three in plain loops with sums in double precision: the specification, up to rounding.
namespace reference {
void panel_scores(ConstPanel panel, ConstMatrix x, float* tile);
void panel_combine(ConstPanel panel, const float* tile, Matrix y);
void panel_accumulate(Panel panel, const float* tile, ConstMatrix x);
}  // namespace reference

}  // namespace airmoe
