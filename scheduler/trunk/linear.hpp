#pragma once
// y = x W^T without bias. Weights are stored [out, in].

#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// y = x * w^T.  Shapes: x [n, in], w [out, in], y [n, out]
void linear_forward(ConstMatrix x, ConstMatrix w, Matrix y);
/// d_x = d_y * w + beta * d_x
void linear_backward_input(ConstMatrix d_y, ConstMatrix w, float beta, Matrix d_x);
/// d_w += d_y^T * x
void linear_backward_weight(ConstMatrix d_y, ConstMatrix x, Matrix d_w);

}  // namespace airmoe::scheduler
