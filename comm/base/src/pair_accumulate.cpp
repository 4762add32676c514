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

// The tokens of one row of the table, with coefficient (i, j) at coefficient[i * units + j].
struct Group {
  const int32_t* HWY_RESTRICT token;
  int64_t count;
  const double* HWY_RESTRICT coefficient;
  int64_t units;
};

// Units [j, j + R) and columns [k, k + V vectors). The sums start at the rounding constant: every
// addition to it rounds the product to a multiple of the quantum and nothing else.
template <int R, int V>
HWY_INLINE void accumulate_block(const Group& group, int64_t j, const float* HWY_RESTRICT x,
                                 int64_t x_ld, double constant, double* HWY_RESTRICT row,
                                 int64_t row_ld) {
  const D d;
  const Half half;
  const auto rounding = hn::Set(d, constant);
  hn::Vec<D> sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = rounding;
  }
  const double* HWY_RESTRICT c = group.coefficient + j;
  for (int64_t i = 0; i < group.count; ++i, c += group.units) {
    const float* HWY_RESTRICT from = x + group.token[i] * x_ld;
    hn::Vec<D> factor[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) factor[r] = hn::Set(d, c[r]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const auto value = hn::PromoteTo(d, hn::LoadU(half, from + v * kLanes));
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

template <int R, int V>
HWY_INLINE int64_t accumulate_columns(const Group& group, int64_t j, const ConstMatrix& x,
                                      double constant, const MatrixView<double>& rows, int64_t k) {
  for (; k + V * kLanes <= x.cols; k += V * kLanes) {
    accumulate_block<R, V>(group, j, x.data + k, x.ld, constant, rows.row(j) + k, rows.ld);
  }
  return k;
}

// Units [j, j + R), all columns.
template <int R>
HWY_INLINE void accumulate_units(const Group& group, int64_t j, const ConstMatrix& x,
                                 double constant, const MatrixView<double>& rows) {
  int64_t k = accumulate_columns<R, 8 / R>(group, j, x, constant, rows, 0);
  if (R == 1) k = accumulate_columns<R, 4>(group, j, x, constant, rows, k);
  k = accumulate_columns<R, 1>(group, j, x, constant, rows, k);
  for (; k < x.cols; ++k) {
    for (int64_t r = j; r < j + R; ++r) {
      double sum = constant;
      for (int64_t i = 0; i < group.count; ++i) {
        sum = std::fma(group.coefficient[i * group.units + r],
                       static_cast<double>(x(group.token[i], k)), sum);
      }
      rows(r, k) += sum - constant;
    }
  }
}

HWY_INLINE void accumulate_group(const Group& group, const ConstMatrix& x, double constant,
                                 const MatrixView<double>& rows) {
  int64_t j = 0;
  for (; j + 4 <= group.units; j += 4) accumulate_units<4>(group, j, x, constant, rows);
  for (; j < group.units; ++j) accumulate_units<1>(group, j, x, constant, rows);
}

void accumulate_row(const int32_t* token, int64_t count, const double* coefficient,
                    const ConstMatrix& x, double constant, const MatrixView<double>& rows) {
  accumulate_group({token, count, coefficient, rows.rows}, x, constant, rows);
}

void accumulate(const PairGrouping& grouping, const int32_t* candidates, const float* coefficient,
                int64_t units, const ConstMatrix& x, double constant,
                const MatrixView<double>& gradient, double* HWY_RESTRICT sorted) {
  constexpr int64_t kLine = 64 / sizeof(double);
  const auto rows_of = [&](int64_t g) {
    const int32_t position = grouping.position(g);
    const int64_t row = candidates == nullptr ? position : candidates[position];
    return gradient.slice_rows(row * units, units);
  };
  for (int64_t g = 0; g < grouping.groups(); ++g) {
    const int64_t begin = grouping.begin(g), end = grouping.end(g);
    if (g + 1 < grouping.groups()) {
      const double* next = rows_of(g + 1).data;
      for (int64_t k = 0; k < x.cols; k += kLine) hwy::Prefetch(next + k);
    }
    double* HWY_RESTRICT out = sorted;
    for (int64_t i = begin; i < end; ++i) {
      const float* c = coefficient + (grouping.pair(i) - grouping.first_pair()) * units;
      for (int64_t j = 0; j < units; ++j) *out++ = untied(c[j]);
    }
    accumulate_group({grouping.tokens() + begin, end - begin, sorted, units}, x, constant,
                     rows_of(g));
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
  workspace.coefficient.ensure(grouping.largest_group() * units);
  HWY_DYNAMIC_DISPATCH(accumulate)
  (grouping, candidates, coefficient, units, x, rounding_constant(quantum), gradient,
   workspace.coefficient.data());
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
