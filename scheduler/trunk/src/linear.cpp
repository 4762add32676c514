#include "scheduler/trunk/linear.hpp"

#include "comm/base/blas.hpp"

namespace airmoe::scheduler {

using blas::Op;

void linear_forward(ConstMatrix x, ConstMatrix w, Matrix y) {
  blas::gemm(Op::none, Op::transpose, 1.0f, x, w, 0.0f, y);
}

void linear_backward_input(ConstMatrix d_y, ConstMatrix w, float beta, Matrix d_x) {
  blas::gemm(Op::none, Op::none, 1.0f, d_y, w, beta, d_x);
}

void linear_backward_weight(ConstMatrix d_y, ConstMatrix x, Matrix d_w) {
  blas::gemm(Op::transpose, Op::none, 1.0f, d_y, x, 1.0f, d_w);
}

}  // namespace airmoe::scheduler
