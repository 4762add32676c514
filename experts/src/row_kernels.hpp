#pragma once
// The rows of one expert against tokens picked by an index list, token by token: for few hidden
// units per expert or few tokens, where tiles would be mostly padding. Vectorised; local.

#include "comm/base/matrix_view.hpp"

namespace airmoe::experts {

/// Rows of x picked by token[0 .. count).
template <class T>
struct TokenRows {
  MatrixView<T> x;
  const int32_t* token = nullptr;  ///< distinct
  int64_t count = 0;
};

/// out[i * stride + j] = <x(token[i]), rows(j)>.
void row_scores(ConstMatrix rows, TokenRows<const float> tokens, float* out, int64_t stride);

/// y(token[i]) += sum_j coefficient[i * stride + j] * rows(j).
void row_combine(ConstMatrix rows, const float* coefficient, int64_t stride, TokenRows<float> y);

}  // namespace airmoe::experts
