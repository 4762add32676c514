#pragma once
// Weighted sums of table rows over a token's selected pairs, in double precision and exact.
//
// This is where the contributions of experts meet, and experts are spread over ranks. Every product
// is rounded to a multiple of the token's quantum q as it is added; multiples of q add up without
// rounding as long as the sum stays below 2^51 q, so the result is the same bits however the pairs
// were split over ranks. Larger sums are still right to double precision, in the order of the
// pairs. (x86 before AVX2, which has no fused multiply-add, rounds products first and may see
// ties.)

#include "comm/base/exact_sum.hpp"
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
/// @param quantum      a power of two per token. Shape: [selection.tokens]
/// @param y            Shape: [selection.tokens, table.cols]
/// Local. No allocation.
void pair_combine(ConstMatrix table, const int32_t* candidates, const SelectionView& selection,
                  const float* coefficient, int64_t units, const double* quantum,
                  MatrixView<double> y);

}  // namespace airmoe
