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
// Panel rows that stay in the first-level cache while all columns are done; combine reloads its
// sums once per chunk, so it takes larger ones where tokens are many.
constexpr int64_t kMaxChunk = 32;
constexpr int64_t kSmallChunk = 16;

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

// ---------------------------------------------------------------------------- sums
//
// combine and accumulate share one kernel: kR chains over `steps`, kV vectors of columns each.
// Their vectors come from a contiguous piece of kV * kLanes columns, because rows of a table whose
// width is a power of two fall into a few sets of the first-level cache and evict each other.

// sum[r] += factor(s, r) * piece[s], s ascending, where factor(s, r) is at s * step_ld + r *
// row_ld.
template <int kR, int kV>
HWY_INLINE void chain(hn::Vec<D> (&sum)[kR][kV], const float* HWY_RESTRICT piece,
                      const float* HWY_RESTRICT factor, int64_t steps, int64_t step_ld,
                      int64_t row_ld) {
  const D d;
  for (int64_t s = 0; s < steps; ++s) {
    hn::Vec<D> w[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) w[v] = hn::Load(d, piece + (s * kV + v) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const auto a = hn::Set(d, factor[s * step_ld + r * row_ld]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sum[r][v] = hn::MulAdd(a, w[v], sum[r][v]);
    }
  }
}

// Columns of one vector from k < cols on, those beyond `cols` as zero. The last, partial vector
// goes by way of a buffer: without masked instructions (SSE4, NEON) Highway's MaskedLoad reads a
// whole aligned vector.
HWY_INLINE hn::Vec<D> load_columns(const float* row, int64_t k, int64_t cols) {
  const D d;
  if (k + kLanes <= cols) return hn::LoadU(d, row + k);
  HWY_ALIGN float padded[kLanes] = {};
  std::copy_n(row + k, cols - k, padded);
  return hn::Load(d, padded);
}

// The reverse; columns from `cols` on are left alone.
HWY_INLINE void store_columns(hn::Vec<D> value, float* row, int64_t k, int64_t cols) {
  const D d;
  if (k + kLanes <= cols) {
    hn::StoreU(value, d, row + k);
    return;
  }
  HWY_ALIGN float padded[kLanes];
  hn::Store(value, d, padded);
  std::copy_n(padded, cols - k, row + k);
}

// Calls f(k, kV as a constant) for the column blocks of a row: kVectors vectors, then single ones.
template <class F>
HWY_INLINE void for_each_column_block(int64_t cols, F f) {
  int64_t k = 0;
  for (; k + kGroup - kLanes < cols; k += kGroup) f(k, std::integral_constant<int, kVectors>());
  for (; k < cols; k += kLanes) f(k, std::integral_constant<int, 1>());
}

// Calls f(i, kR as a constant) for blocks of rows.
template <class F>
HWY_INLINE void for_each_row_block(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kSumRows <= count; i += kSumRows) f(i, std::integral_constant<int, kSumRows>());
  if (kSumRows > 4 && i + 4 <= count) f(i, std::integral_constant<int, 4>()), i += 4;
  if (i + 2 <= count) f(i, std::integral_constant<int, 2>()), i += 2;
  if (i < count) f(i, std::integral_constant<int, 1>());
}

HWY_INLINE void prefetch_columns(const float* row, int64_t k, int64_t width) {
  for (int64_t line = 0; line < width; line += kPrefetchStep) hwy::Prefetch(row + k + line);
}

// ---------------------------------------------------------------------------- combine

// y in `sums` [tokens, sums_ld] is carried from chunk to chunk and starts at zero.
void combine_chunk(const ConstPanel& panel, int64_t i0, int64_t chunk, const float* tile,
                   int64_t tokens, float* sums, int64_t sums_ld) {
  const int64_t count = std::min(chunk, panel.count - i0);
  const int64_t ld = tile_ld(tokens);
  const float* row[kMaxChunk];
  const float* next[kMaxChunk];  // the rows of the chunk after this one, to prefetch
  for (int64_t i = 0; i < count; ++i) {
    row[i] = panel.table + panel.rows[i0 + i] * panel.ld;
    next[i] = panel.table + panel.rows[std::min(i0 + i + chunk, panel.count - 1)] * panel.ld;
  }
  for_each_column_block(panel.cols, [&](int64_t k, auto vectors) HWY_ATTR {
    constexpr int kV = decltype(vectors)::value;
    const D d;
    HWY_ALIGN float piece[kMaxChunk * kV * kLanes];
    for (int64_t i = 0; i < count; ++i) {
      prefetch_columns(next[i], k, kV * kLanes);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        hn::Store(load_columns(row[i], k + v * kLanes, panel.cols), d,
                  piece + (i * kV + v) * kLanes);
      }
    }
    for_each_row_block(tokens, [&](int64_t t, auto rows) HWY_ATTR {
      constexpr int kR = decltype(rows)::value;
      float* out = sums + t * sums_ld + k;
      hn::Vec<D> sum[kR][kV];
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) {
          sum[r][v] = i0 == 0 ? hn::Zero(d) : hn::Load(d, out + r * sums_ld + v * kLanes);
        }
      }
      chain<kR, kV>(sum, piece, tile + i0 * ld + t, count, ld, 1);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) hn::Store(sum[r][v], d, out + r * sums_ld + v * kLanes);
      }
    });
  });
}

void combine(const ConstPanel& panel, const float* tile, const Matrix& y, float* sums,
             int64_t sums_ld) {
  const int64_t chunk = y.rows > 16 ? kMaxChunk : kSmallChunk;
  for (int64_t i = 0; i < panel.count; i += chunk) {
    combine_chunk(panel, i, chunk, tile, y.rows, sums, sums_ld);
  }
  for (int64_t t = 0; t < y.rows; ++t) {
    float* HWY_RESTRICT out = y.row(t);
    const float* HWY_RESTRICT in = sums + t * sums_ld;
    for (int64_t k = 0; k < y.cols; ++k) out[k] += in[k];
  }
}

// ---------------------------------------------------------------------------- accumulate

// Blocks of columns one after the other, each [tokens][width], zero beyond the last column.
void pack_columns(const ConstMatrix& x, float* packed) {
  for_each_column_block(x.cols, [&](int64_t k, auto vectors) HWY_ATTR {
    constexpr int kV = decltype(vectors)::value;
    const D d;
    float* HWY_RESTRICT out = packed + k * x.rows;
    for (int64_t t = 0; t < x.rows; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        hn::Store(load_columns(x.row(t), k + v * kLanes, x.cols), d, out + (t * kV + v) * kLanes);
      }
    }
  });
}

void accumulate_chunk(const Panel& panel, int64_t i0, const float* tile, int64_t tokens,
                      const float* packed) {
  const int64_t count = std::min(kSmallChunk, panel.count - i0);
  const int64_t ld = tile_ld(tokens);
  float* row[kSmallChunk];
  const float* next[kSmallChunk];
  for (int64_t i = 0; i < count; ++i) {
    row[i] = panel.table + panel.rows[i0 + i] * panel.ld;
    next[i] = panel.table + panel.rows[std::min(i0 + i + kSmallChunk, panel.count - 1)] * panel.ld;
  }
  for_each_column_block(panel.cols, [&](int64_t k, auto vectors) HWY_ATTR {
    constexpr int kV = decltype(vectors)::value;
    for_each_row_block(count, [&](int64_t i, auto rows) HWY_ATTR {
      constexpr int kR = decltype(rows)::value;
      const D d;
      hn::Vec<D> sum[kR][kV];
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        prefetch_columns(next[i + r], k, kV * kLanes);
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) sum[r][v] = hn::Zero(d);
      }
      chain<kR, kV>(sum, packed + k * tokens, tile + (i0 + i) * ld, tokens, 1, ld);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) {
          const int64_t column = k + v * kLanes;
          const auto value = hn::Add(load_columns(row[i + r], column, panel.cols), sum[r][v]);
          store_columns(value, row[i + r], column, panel.cols);
        }
      }
    });
  });
}

void accumulate(const Panel& panel, const float* tile, const ConstMatrix& x, float* packed) {
  pack_columns(x, packed);
  for (int64_t i = 0; i < panel.count; i += kSmallChunk) {
    accumulate_chunk(panel, i, tile, x.rows, packed);
  }
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
  const KernelTimer timer(workspace.seconds);
  workspace.packed.ensure(tile_ld(x.rows) * x.cols);
  HWY_DYNAMIC_DISPATCH(scores)(panel, x, tile, workspace.packed.data());
}

void panel_combine(ConstPanel panel, const float* tile, Matrix y, PanelWorkspace& workspace) {
  AIRMOE_CHECK(y.cols == panel.cols, "panel_combine: output [{}, {}] from a panel [{}, {}]", y.rows,
               y.cols, panel.count, panel.cols);
  if (y.rows == 0 || panel.count == 0) return;
  const KernelTimer timer(workspace.seconds);
  const int64_t sums_ld = tile_ld(y.cols);
  workspace.packed.ensure(y.rows * sums_ld);
  HWY_DYNAMIC_DISPATCH(combine)(panel, tile, y, workspace.packed.data(), sums_ld);
}

void panel_accumulate(Panel panel, const float* tile, ConstMatrix x, PanelWorkspace& workspace) {
  AIRMOE_CHECK(x.cols == panel.cols, "panel_accumulate: tokens [{}, {}] into a panel [{}, {}]",
               x.rows, x.cols, panel.count, panel.cols);
  if (x.rows == 0 || panel.count == 0) return;
  const KernelTimer timer(workspace.seconds);
  workspace.packed.ensure(x.rows * tile_ld(x.cols));
  HWY_DYNAMIC_DISPATCH(accumulate)(panel, tile, x, workspace.packed.data());
}

}  // namespace airmoe
#endif  // HWY_ONCE
