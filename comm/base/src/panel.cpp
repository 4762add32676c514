// Panel kernels: one source, compiled once per instruction set by Highway, chosen at run time.
// Scalable vectors (SVE, RVV) cannot be held in arrays, so those processors use their fixed-width
// fallback (NEON, portable).

#include "comm/base/panel.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/panel.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kTileLanes>;
using Mask = hn::Mask<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr int kVectors = 2;  // vectors side by side in a register block
constexpr int64_t kGroup = kVectors * kLanes;
// Rows of a register block of panel_scores; leaves registers for the vectors of x and a broadcast.
constexpr int kScoreRows = (HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM) ? 12 : 6;
constexpr int kSumRows = (HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM) ? 8 : 4;
constexpr int64_t kPrefetchStep = 64 / sizeof(float);  // floats of one cache line
constexpr int64_t kChunk = 64;                         // panel rows kept in cache by panel_combine

HWY_INLINE Mask first_lanes(int64_t count) {
  return hn::FirstN(D(), static_cast<size_t>(std::clamp<int64_t>(count, 0, kLanes)));
}

// ---------------------------------------------------------------------------- scores

// Groups of kGroup tokens one after the other, each [cols][width] with tokens along the lanes.
void pack_tokens(ConstMatrix x, float* HWY_RESTRICT packed) {
  const int64_t padded = tile_ld(x.rows);
  for (int64_t t0 = 0; t0 < padded; t0 += kGroup) {
    const int64_t width = std::min(kGroup, padded - t0);
    for (int64_t lane = 0; lane < width; ++lane) {
      float* HWY_RESTRICT out = packed + t0 * x.cols + lane;
      if (t0 + lane < x.rows) {
        const float* HWY_RESTRICT in = x.row(t0 + lane);
        for (int64_t k = 0; k < x.cols; ++k) out[k * width] = in[k];
      } else {
        for (int64_t k = 0; k < x.cols; ++k) out[k * width] = 0;
      }
    }
  }
}

// kR panel rows against kV vectors of tokens, of which the first `valid` lanes are tokens.
// `next` are the rows to prefetch, null for none.
template <int kR, int kV>
HWY_INLINE void score_block(const float* const* row, const float* const* next, int64_t cols,
                            const float* HWY_RESTRICT packed, float* HWY_RESTRICT tile, int64_t ld,
                            int64_t valid) {
  const D d;
  hn::Vec<D> sum[kR][kV];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t k0 = 0; k0 < cols; k0 += kPrefetchStep) {
    if (next != nullptr) {
      for (int r = 0; r < kR; ++r) hwy::Prefetch(next[r] + k0);
    }
    const int64_t k1 = std::min(cols, k0 + kPrefetchStep);
    for (int64_t k = k0; k < k1; ++k) {
      hn::Vec<D> x[kV];
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) x[v] = hn::Load(d, packed + (k * kV + v) * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        const auto w = hn::Set(d, row[r][k]);
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) sum[r][v] = hn::MulAdd(w, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kV; ++v) {
    const Mask token = first_lanes(valid - v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      hn::Store(hn::IfThenElseZero(token, sum[r][v]), d, tile + r * ld + v * kLanes);
    }
  }
}

// kR panel rows from row i against all tokens.
template <int kR>
void score_rows(const ConstPanel& panel, int64_t i, int64_t tokens, const float* packed,
                float* tile) {
  const int64_t ld = tile_ld(tokens);
  const float* row[kR];
  const float* next[kR];
  for (int r = 0; r < kR; ++r) {
    row[r] = panel.table + panel.rows[i + r] * panel.ld;
    next[r] = panel.table + panel.rows[std::min(i + r + kR, panel.count - 1)] * panel.ld;
  }
  float* out = tile + i * ld;
  for (int64_t t = 0; t < ld; t += kGroup) {
    const float* const* prefetch = t == 0 ? next : nullptr;
    const float* x = packed + t * panel.cols;
    if (t + kGroup <= ld) {
      score_block<kR, kVectors>(row, prefetch, panel.cols, x, out + t, ld, tokens - t);
    } else {
      score_block<kR, 1>(row, prefetch, panel.cols, x, out + t, ld, tokens - t);
    }
  }
}

void scores(const ConstPanel& panel, const ConstMatrix& x, float* tile, float* packed) {
  pack_tokens(x, packed);
  int64_t i = 0;
  for (; i + kScoreRows <= panel.count; i += kScoreRows) {
    score_rows<kScoreRows>(panel, i, x.rows, packed, tile);
  }
  for (; i + 4 <= panel.count; i += 4) score_rows<4>(panel, i, x.rows, packed, tile);
  for (; i < panel.count; ++i) score_rows<1>(panel, i, x.rows, packed, tile);
}

// ---------------------------------------------------------------------------- combine

// A chunk of panel rows: where they are, and the rows of the chunk after it (null for none).
struct Chunk {
  const float* row[kChunk];
  const float* next[kChunk];
  int64_t count;
  bool prefetch;
};

// Adds the chunk's part of kR tokens and kV vectors of columns to `sum`, which starts at zero with
// the first chunk.
template <int kR, int kV, bool kMasked>
HWY_INLINE void combine_block(const Chunk& chunk, bool first, const float* HWY_RESTRICT tile,
                              int64_t ld, int64_t k, bool prefetch, float* HWY_RESTRICT sums,
                              int64_t sums_ld, Mask mask) {
  const D d;
  hn::Vec<D> sum[kR][kV];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      sum[r][v] = first ? hn::Zero(d) : hn::LoadU(d, sums + r * sums_ld + v * kLanes);
    }
  }
  for (int64_t i = 0; i < chunk.count; ++i) {
    if (prefetch) {
      for (int64_t line = 0; line < kV * kLanes; line += kPrefetchStep) {
        hwy::Prefetch(chunk.next[i] + k + line);
      }
    }
    hn::Vec<D> w[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      const float* from = chunk.row[i] + k + v * kLanes;
      w[v] = kMasked ? hn::MaskedLoad(mask, d, from) : hn::LoadU(d, from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const auto a = hn::Set(d, tile[i * ld + r]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sum[r][v] = hn::MulAdd(a, w[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) hn::StoreU(sum[r][v], d, sums + r * sums_ld + v * kLanes);
  }
}

template <int kV, bool kMasked>
HWY_INLINE void combine_tokens(const Chunk& chunk, bool first, const float* tile, int64_t tokens,
                               int64_t k, float* sums, int64_t sums_ld, Mask mask) {
  const int64_t ld = tile_ld(tokens);
  float* out = sums + k;
  int64_t t = 0;
  const auto block = [&](auto rows) HWY_ATTR {
    constexpr int kR = decltype(rows)::value;
    combine_block<kR, kV, kMasked>(chunk, first, tile + t, ld, k, chunk.prefetch && t == 0,
                                   out + t * sums_ld, sums_ld, mask);
    t += kR;
  };
  while (t + kSumRows <= tokens) block(std::integral_constant<int, kSumRows>());
  while (t + 4 <= tokens) block(std::integral_constant<int, 4>());
  while (t + 2 <= tokens) block(std::integral_constant<int, 2>());
  if (t < tokens) block(std::integral_constant<int, 1>());
}

void combine(const ConstPanel& panel, const float* tile, const Matrix& y, float* sums,
             int64_t sums_ld) {
  const D d;
  const int64_t ld = tile_ld(y.rows);
  const auto row_of = [&](int64_t i) { return panel.table + panel.rows[i] * panel.ld; };
  const Mask all = first_lanes(kLanes);
  for (int64_t i0 = 0; i0 < panel.count; i0 += kChunk) {
    Chunk chunk;
    chunk.count = std::min(kChunk, panel.count - i0);
    chunk.prefetch = i0 + kChunk < panel.count;
    for (int64_t i = 0; i < chunk.count; ++i) {
      chunk.row[i] = row_of(i0 + i);
      chunk.next[i] = row_of(std::min(i0 + i + kChunk, panel.count - 1));
    }
    const float* part = tile + i0 * ld;
    int64_t k = 0;
    for (; k + kGroup <= panel.cols; k += kGroup) {
      combine_tokens<kVectors, false>(chunk, i0 == 0, part, y.rows, k, sums, sums_ld, all);
    }
    for (; k + kLanes <= panel.cols; k += kLanes) {
      combine_tokens<1, false>(chunk, i0 == 0, part, y.rows, k, sums, sums_ld, all);
    }
    if (k < panel.cols) {
      combine_tokens<1, true>(chunk, i0 == 0, part, y.rows, k, sums, sums_ld,
                              first_lanes(panel.cols - k));
    }
  }
  for (int64_t t = 0; t < y.rows; ++t) {
    float* HWY_RESTRICT out = y.row(t);
    const float* HWY_RESTRICT in = sums + t * sums_ld;
    int64_t k = 0;
    for (; k + kLanes <= y.cols; k += kLanes) {
      hn::StoreU(hn::Add(hn::LoadU(d, out + k), hn::Load(d, in + k)), d, out + k);
    }
    for (; k < y.cols; ++k) out[k] += in[k];
  }
}

// ---------------------------------------------------------------------------- accumulate

// kR panel rows, kV vectors of columns from column k: a chain over all tokens, then one addition.
template <int kR, int kV, bool kMasked>
HWY_INLINE void accumulate_block(float* const* row, float* const* next,
                                 const float* HWY_RESTRICT tile, int64_t ld, const ConstMatrix& x,
                                 int64_t k, Mask mask) {
  const D d;
  hn::Vec<D> sum[kR][kV];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
    for (int64_t line = 0; line < kV * kLanes; line += kPrefetchStep) {
      hwy::Prefetch(next[r] + k + line);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) sum[r][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT token = x.data + k;
  for (int64_t t = 0; t < x.rows; ++t, token += x.ld) {
    hn::Vec<D> w[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      const float* from = token + v * kLanes;
      w[v] = kMasked ? hn::MaskedLoad(mask, d, from) : hn::LoadU(d, from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const auto a = hn::Set(d, tile[r * ld + t]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sum[r][v] = hn::MulAdd(a, w[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      float* at = row[r] + k + v * kLanes;
      if (kMasked) {
        hn::BlendedStore(hn::Add(hn::MaskedLoad(mask, d, at), sum[r][v]), mask, d, at);
      } else {
        hn::StoreU(hn::Add(hn::LoadU(d, at), sum[r][v]), d, at);
      }
    }
  }
}

// kR panel rows from row i, all columns.
template <int kR>
void accumulate_rows(const Panel& panel, int64_t i, const float* tile, const ConstMatrix& x) {
  const int64_t ld = tile_ld(x.rows);
  float* row[kR];
  float* next[kR];
  for (int r = 0; r < kR; ++r) {
    row[r] = panel.table + panel.rows[i + r] * panel.ld;
    next[r] = panel.table + panel.rows[std::min(i + r + kR, panel.count - 1)] * panel.ld;
  }
  const float* factors = tile + i * ld;
  const Mask all = first_lanes(kLanes);
  int64_t k = 0;
  for (; k + kGroup <= panel.cols; k += kGroup) {
    accumulate_block<kR, kVectors, false>(row, next, factors, ld, x, k, all);
  }
  for (; k + kLanes <= panel.cols; k += kLanes) {
    accumulate_block<kR, 1, false>(row, next, factors, ld, x, k, all);
  }
  if (k < panel.cols) {
    accumulate_block<kR, 1, true>(row, next, factors, ld, x, k, first_lanes(panel.cols - k));
  }
}

void accumulate(const Panel& panel, const float* tile, const ConstMatrix& x) {
  int64_t i = 0;
  for (; i + kSumRows <= panel.count; i += kSumRows) accumulate_rows<kSumRows>(panel, i, tile, x);
  for (; i < panel.count; ++i) accumulate_rows<1>(panel, i, tile, x);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(scores);
HWY_EXPORT(combine);
HWY_EXPORT(accumulate);

void panel_scores(ConstPanel panel, ConstMatrix x, float* tile, PanelWorkspace& workspace) {
  AIRMOE_CHECK(x.cols == panel.cols, "panel_scores: tokens [{}, {}] against a panel [{}, {}]",
               x.rows, x.cols, panel.count, panel.cols);
  if (x.rows == 0 || panel.count == 0) return;
  workspace.packed.ensure(tile_ld(x.rows) * x.cols);
  HWY_DYNAMIC_DISPATCH(scores)(panel, x, tile, workspace.packed.data());
}

void panel_combine(ConstPanel panel, const float* tile, Matrix y, PanelWorkspace& workspace) {
  AIRMOE_CHECK(y.cols == panel.cols, "panel_combine: output [{}, {}] from a panel [{}, {}]", y.rows,
               y.cols, panel.count, panel.cols);
  if (y.rows == 0 || panel.count == 0) return;
  const int64_t sums_ld = tile_ld(y.cols);
  workspace.packed.ensure(y.rows * sums_ld);
  HWY_DYNAMIC_DISPATCH(combine)(panel, tile, y, workspace.packed.data(), sums_ld);
}

void panel_accumulate(Panel panel, const float* tile, ConstMatrix x, PanelWorkspace&) {
  AIRMOE_CHECK(x.cols == panel.cols, "panel_accumulate: tokens [{}, {}] into a panel [{}, {}]",
               x.rows, x.cols, panel.count, panel.cols);
  if (x.rows == 0 || panel.count == 0) return;
  HWY_DYNAMIC_DISPATCH(accumulate)(panel, tile, x);
}

}  // namespace airmoe
#endif  // HWY_ONCE
