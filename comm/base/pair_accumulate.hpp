#pragma once
// The transpose of pair_combine.hpp: every selected row of a table collects the tokens that
// selected it, in double precision and exactly.
//
// These sums are gradients of experts and centroids. The tokens of an expert may be computed on
// several ranks that hold a copy of it, in several blocks and micro-batches. Every product is
// rounded to a multiple of one quantum q as it is added; multiples of q add up without rounding as
// long as the sum stays below 2^51 q, so the result is the same bits whatever the order and however
// the pairs were split. Larger sums are still right to double precision, in the order of the calls.
// (x86 before AVX2, which has no fused multiply-add, rounds products first and may see ties.)

#include "comm/base/exact_sum.hpp"
#include "comm/base/matrix_view.hpp"
#include "comm/base/pair_grouping.hpp"

namespace airmoe {

/// Scratch; grows to the largest call seen, then allocates nothing.
struct PairAccumulateWorkspace {
  Buffer<double> coefficient, packed;
  double seconds = 0;  ///< spent in pair_accumulate and row_accumulate so far
};

/// gradient(row(p) * m + j, k) += sum over pairs p and units j < m of
///            coefficient[(p - first_pair) * m + j] * x(token(p), k), where
/// row(p) = candidates[position(p)], or position(p) itself when candidates is nullptr.
/// Multiply-adds: pairs * m * x.cols, where panel_accumulate takes tokens * candidates * m * x.cols
/// in float; each row is read and written once per call.
/// @param grouping     of the selection. Tokens are rows of x
/// @param coefficient  in the order of the selection. Shape: [pairs, m]
/// @param units        m
/// @param quantum      a power of two
/// @param gradient     Shape: [rows of the table * m, x.cols]; other rows are left alone
/// Local. Throws Error when widths disagree.
void pair_accumulate(const PairGrouping& grouping, const int32_t* candidates,
                     const float* coefficient, int64_t units, ConstMatrix x, double quantum,
                     MatrixView<double> gradient, PairAccumulateWorkspace& workspace);

/// One group of it, picked by the caller:
/// rows(j, k) += sum over i < count of coefficient[i * stride + j] * x(token[i], k).
/// @param rows  Shape: [m, x.cols]
/// Local. Throws Error when widths disagree.
void row_accumulate(const int32_t* token, int64_t count, const float* coefficient, int64_t stride,
                    ConstMatrix x, double quantum, MatrixView<double> rows,
                    PairAccumulateWorkspace& workspace);

/// The same in plain loops, product by product: the specification, bit for bit.
namespace reference {
void pair_accumulate(const PairGrouping& grouping, const int32_t* candidates,
                     const float* coefficient, int64_t units, ConstMatrix x, double quantum,
                     MatrixView<double> gradient);
}  // namespace reference

}  // namespace airmoe
