#include "comm/base/pair_accumulate.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"
#include "comm/base/panel.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/pair_accumulate.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h
#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<double, 8>;
using Half = hn::Rebind<float, D>;
constexpr int64_t kLanes = hn::MaxLanes(D());

constexpr int kVectors = 8;  // sums of a column block, held in registers
constexpr int64_t kBlock = kVectors * kLanes;

// The tokens of one row of the table, with coefficient (i, j) at coefficient[i * units + j].
struct Group {
  const int32_t* HWY_RESTRICT token;
  int64_t count;
  const double* HWY_RESTRICT coefficient;
  int64_t units;
};

HWY_INLINE hn::Vec<D> load(const double* from) {
  return hn::LoadU(D(), from);
}
HWY_INLINE hn::Vec<D> load(const float* from) {
  return hn::PromoteTo(D(), hn::LoadU(Half(), from));
}

// Units [j, j + R) and V vectors of columns from x and row on. The sums start at the rounding
// constant: every addition to it rounds the product to a multiple of the quantum and nothing else.
template <int R, int V, class T>
HWY_INLINE void accumulate_block(const Group& group, int64_t j, const T* HWY_RESTRICT x,
                                 int64_t x_ld, double constant, double* HWY_RESTRICT row,
                                 int64_t row_ld) {
  const D d;
  const auto rounding = hn::Set(d, constant);
  hn::Vec<D> sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = rounding;
  }
  const double* HWY_RESTRICT c = group.coefficient + j;
  for (int64_t i = 0; i < group.count; ++i, c += group.units) {
    const T* HWY_RESTRICT from = x + group.token[i] * x_ld;
    hn::Vec<D> factor[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) factor[r] = hn::Set(d, c[r]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto value = load(from + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][v] = hn::MulAdd(factor[r], value, sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    double* HWY_RESTRICT out = row + r * row_ld;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto total = hn::Sub(sum[r][v], rounding);
      hn::StoreU(hn::Add(hn::LoadU(d, out + v * kLanes), total), d, out + v * kLanes);
    }
  }
}

// Units [j, j + R) and `columns` columns, at most kBlock, from x and row on.
template <int R, class T>
HWY_INLINE void accumulate_units(const Group& group, int64_t j, const T* x, int64_t x_ld,
                                 int64_t columns, double constant, double* row, int64_t row_ld) {
  int64_t k = 0;
  for (; k + kBlock / R <= columns; k += kBlock / R) {
    accumulate_block<R, kVectors / R>(group, j, x + k, x_ld, constant, row + k, row_ld);
  }
  for (; k + kLanes <= columns; k += kLanes) {
    accumulate_block<R, 1>(group, j, x + k, x_ld, constant, row + k, row_ld);
  }
  for (; k < columns; ++k) {
    for (int64_t r = 0; r < R; ++r) {
      double sum = constant;
      for (int64_t i = 0; i < group.count; ++i) {
        sum = std::fma(group.coefficient[i * group.units + j + r],
                       static_cast<double>(x[group.token[i] * x_ld + k]), sum);
      }
      row[r * row_ld + k] += sum - constant;
    }
  }
}

template <class T>
HWY_INLINE void accumulate_group(const Group& group, const T* x, int64_t x_ld, int64_t columns,
                                 double constant, double* row, int64_t row_ld) {
  int64_t j = 0;
  for (; j + 4 <= group.units; j += 4) {
    accumulate_units<4>(group, j, x, x_ld, columns, constant, row + j * row_ld, row_ld);
  }
  for (; j < group.units; ++j) {
    accumulate_units<1>(group, j, x, x_ld, columns, constant, row + j * row_ld, row_ld);
  }
}

void accumulate_row(const int32_t* token, int64_t count, const double* coefficient,
                    const ConstMatrix& x, double constant, const MatrixView<double>& rows) {
  const Group group{token, count, coefficient, rows.rows};
  for (int64_t k = 0; k < x.cols; k += kBlock) {
    accumulate_group(group, x.data + k, x.ld, std::min(kBlock, x.cols - k), constant, rows.data + k,
                     rows.ld);
  }
}

// Tokens as doubles, one block of columns after the other, each [tokens][kBlock].
void pack(const ConstMatrix& x, double* HWY_RESTRICT packed) {
  for (int64_t k = 0; k < x.cols; k += kBlock) {
    const int64_t columns = std::min(kBlock, x.cols - k);
    for (int64_t t = 0; t < x.rows; ++t, packed += kBlock) {
      const float* HWY_RESTRICT from = x.row(t) + k;
      for (int64_t i = 0; i < columns; ++i) packed[i] = static_cast<double>(from[i]);
    }
  }
}

// Groups [begin, end), whose coefficients in group order are at `sorted`. Blocks of columns
// outside: the tokens' part of a block stays in the first-level cache. x is packed, or null.
void accumulate_groups(const PairGrouping& grouping, int64_t begin, int64_t end,
                       const int32_t* candidates, const double* sorted, int64_t units,
                       const ConstMatrix& x, const double* packed, double constant,
                       const MatrixView<double>& gradient) {
  constexpr int64_t kLine = 64 / sizeof(double);
  const auto row_of = [&](int64_t g) HWY_ATTR {
    const int32_t position = grouping.position(g);
    return gradient.row((candidates == nullptr ? position : candidates[position]) * units);
  };
  for (int64_t k = 0; k < x.cols; k += kBlock) {
    const int64_t columns = std::min(kBlock, x.cols - k);
    for (int64_t g = begin; g < end; ++g) {
      if (g + (end - begin) < grouping.groups()) {  // rows of the next chunk, while there is time
        const double* next = row_of(g + (end - begin)) + k;
        for (int64_t j = 0; j < units; ++j, next += gradient.ld) {
          for (int64_t i = 0; i < columns; i += kLine) hwy::Prefetch(next + i);
        }
      }
      const Group group{grouping.tokens() + grouping.begin(g), grouping.end(g) - grouping.begin(g),
                        sorted + (grouping.begin(g) - grouping.begin(begin)) * units, units};
      double* row = row_of(g) + k;
      if (packed != nullptr) {
        accumulate_group(group, packed + k * x.rows, kBlock, columns, constant, row, gradient.ld);
      } else {
        accumulate_group(group, x.data + k, x.ld, columns, constant, row, gradient.ld);
      }
    }
  }
}

void accumulate(const PairGrouping& grouping, const int32_t* candidates, const float* coefficient,
                int64_t units, const ConstMatrix& x, double constant,
                const MatrixView<double>& gradient, PairAccumulateWorkspace& workspace) {
  // Converting tokens once pays where they fit the second-level cache; elsewhere it is done pair by
  // pair.
  constexpr int64_t kPackBytes = 512 << 10;
  constexpr int64_t kChunk = 512;  // pairs whose rows are fetched and worked on together
  const double* packed = nullptr;
  const int64_t size = x.rows * ((x.cols + kBlock - 1) / kBlock * kBlock);
  if (size * static_cast<int64_t>(sizeof(double)) <= kPackBytes) {
    workspace.packed.ensure(size);
    pack(x, workspace.packed.data());
    packed = workspace.packed.data();
  }
  workspace.coefficient.ensure(std::max(kChunk, grouping.largest_group() * units));
  for (int64_t begin = 0; begin < grouping.groups();) {
    const int64_t first = grouping.begin(begin);
    int64_t end = begin + 1;
    while (end < grouping.groups() && (grouping.end(end) - first) * units <= kChunk) ++end;
    double* HWY_RESTRICT out = workspace.coefficient.data();
    for (int64_t i = first; i < grouping.end(end - 1); ++i) {
      const float* c = coefficient + (grouping.pair(i) - grouping.first_pair()) * units;
      for (int64_t j = 0; j < units; ++j) *out++ = untied(c[j]);
    }
    accumulate_groups(grouping, begin, end, candidates, workspace.coefficient.data(), units, x,
                      packed, constant, gradient);
    begin = end;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(accumulate);
HWY_EXPORT(accumulate_row);

namespace {

void check_widths(int64_t x_cols, int64_t gradient_cols) {
  AIRMOE_CHECK(x_cols == gradient_cols, "pair_accumulate: tokens of width {} into rows of width {}",
               x_cols, gradient_cols);
}

}  // namespace

void pair_accumulate(const PairGrouping& grouping, const int32_t* candidates,
                     const float* coefficient, int64_t units, ConstMatrix x, double quantum,
                     MatrixView<double> gradient, PairAccumulateWorkspace& workspace) {
  check_widths(x.cols, gradient.cols);
  if (grouping.groups() == 0) return;
  const KernelTimer timer(workspace.seconds);
  HWY_DYNAMIC_DISPATCH(accumulate)
  (grouping, candidates, coefficient, units, x, rounding_constant(quantum), gradient, workspace);
}

void row_accumulate(const int32_t* token, int64_t count, const float* coefficient, int64_t stride,
                    ConstMatrix x, double quantum, MatrixView<double> rows,
                    PairAccumulateWorkspace& workspace) {
  check_widths(x.cols, rows.cols);
  workspace.coefficient.ensure(count * rows.rows);
  double* out = workspace.coefficient.data();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < rows.rows; ++j) *out++ = untied(coefficient[i * stride + j]);
  }
  HWY_DYNAMIC_DISPATCH(accumulate_row)
  (token, count, workspace.coefficient.data(), x, rounding_constant(quantum), rows);
}

}  // namespace airmoe
#endif  // HWY_ONCE
