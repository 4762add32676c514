#pragma once
// Weighted sums of table rows over a token's selected pairs, in double precision.
//
// This is where the contributions of experts meet, and experts are spread over ranks. A product of
// two floats is exact in double, and the sum of a token's few hundred products is right to about
// 2^-50, so that after rounding to float the result is the same however the pairs were split over
// ranks (but for about one element in 10^7, by its last bit).

#include "comm/base/matrix_view.hpp"
#include "comm/base/selection.hpp"

namespace airmoe {

/// y(t, k) += sum over pairs p of token t and units j < m of
///            coefficient[(p - offset[0]) * m + j] * table(row(p) * m + j, k), in that order, where
/// row(p) = candidates[position[p]], or position[p] itself when candidates is nullptr.
/// Reads the K selected rows per token where panel_combine reads all M: about as fast at K / M =
/// 1/4 (half the lanes, a quarter of the rows), faster below.
/// @param coefficient  of the pairs of `selection` only, m per pair
/// @param units        m
/// @param y            Shape: [selection.tokens, table.cols]
/// Local. No allocation.
void pair_combine(ConstMatrix table, const int32_t* candidates, const SelectionView& selection,
                  const float* coefficient, int64_t units, MatrixView<double> y);

}  // namespace airmoe
