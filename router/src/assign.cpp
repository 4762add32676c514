// Codewords of tokens, and tokens in the order of their codewords.

#include "router/assign.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "comm/base/error.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "router/src/assign.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe::router {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// best[t] = the first row of the tile with the largest score in column t, for all columns.
void column_argmax(const float* HWY_RESTRICT tile, int64_t rows, int64_t ld,
                   int32_t* HWY_RESTRICT best) {
  const hn::CappedTag<float, kTileLanes> d;
  const hn::RebindToSigned<decltype(d)> di;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  for (int64_t t = 0; t < ld; t += kLanes) {
    auto score = hn::Set(d, -std::numeric_limits<float>::infinity());
    auto row = hn::Zero(di);
    auto here = hn::Zero(di);
    const auto one = hn::Set(di, 1);
    for (int64_t g = 0; g < rows; ++g) {
      const auto candidate = hn::Load(d, tile + g * ld + t);
      const auto better = hn::Gt(candidate, score);
      score = hn::IfThenElse(better, candidate, score);
      row = hn::IfThenElse(hn::RebindMask(di, better), here, row);
      here = hn::Add(here, one);
    }
    hn::StoreU(row, di, best + t);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe::router
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe::router {

HWY_EXPORT(column_argmax);

void assign_codewords(ConstMatrix hidden, ConstMatrix codebook, std::span<int32_t> codeword,
                      AssignWorkspace& workspace) {
  constexpr int64_t kBlock = 64;
  AIRMOE_CHECK(hidden.cols == codebook.cols, "assign: tokens have {} columns, codewords {}",
               hidden.cols, codebook.cols);
  AIRMOE_CHECK(static_cast<int64_t>(codeword.size()) == hidden.rows,
               "assign: {} tokens, {} results", hidden.rows, codeword.size());
  AIRMOE_CHECK(codebook.rows >= 1, "assign: no codewords");
  workspace.rows.ensure(codebook.rows);
  std::iota(workspace.rows.begin(), workspace.rows.end(), 0);
  workspace.tile.ensure(codebook.rows * kBlock);
  const ConstPanel panel{codebook.data, workspace.rows.data(), codebook.rows, codebook.cols,
                         codebook.ld};
  for (int64_t begin = 0; begin < hidden.rows; begin += kBlock) {
    const int64_t n = std::min(kBlock, hidden.rows - begin);
    panel_scores(panel, hidden.slice_rows(begin, n), workspace.tile.data(), workspace.panel);
    int32_t best[kBlock];
    HWY_DYNAMIC_DISPATCH(column_argmax)(workspace.tile.data(), codebook.rows, tile_ld(n), best);
    std::copy_n(best, n, codeword.data() + begin);
  }
}

void CodewordOrder::build(std::span<const int32_t> codeword, int64_t codewords) {
  const int64_t n = static_cast<int64_t>(codeword.size());
  token.ensure(n);
  scratch.ensure(codewords + 1);
  scratch.fill(0);
  for (const int32_t g : codeword) {
    AIRMOE_ASSERT(g >= 0 && g < codewords);
    ++scratch[g + 1];
  }
  int64_t found = 0;
  for (int64_t g = 0; g < codewords; ++g) found += scratch[g + 1] != 0;
  present.ensure(found);
  begin.ensure(found + 1);
  found = 0;
  begin[0] = 0;
  for (int64_t g = 0; g < codewords; ++g) {
    const int64_t count = scratch[g + 1];
    scratch[g + 1] += scratch[g];
    if (count == 0) continue;
    present[found++] = static_cast<int32_t>(g);
    begin[found] = scratch[g + 1];
  }
  for (int64_t t = 0; t < n; ++t) token[scratch[codeword[t]]++] = static_cast<int32_t>(t);
}

}  // namespace airmoe::router
#endif  // HWY_ONCE
