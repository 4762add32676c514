#include "scheduler/trunk/causal_attention.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/blas.hpp"
#include "comm/base/vector_math.hpp"
#include "scheduler/trunk/src/row_math.hpp"

namespace airmoe::scheduler {
namespace {

using blas::Op;

/// Query rows per block. Smaller wastes fewer masked products, larger makes better matrix products.
constexpr int64_t kQueryBlock = 64;

/// Columns of one head.
template <class T>
MatrixView<T> head_of(MatrixView<T> x, int64_t head, int64_t head_dim) {
  return {x.data + head * head_dim, x.rows, head_dim, x.ld};
}

/// Query rows [begin, begin + rows) see keys [0, keys); row r only the first visible(r).
struct QueryBlock {
  int64_t begin, rows, keys;
  int64_t visible(int64_t r) const { return begin + r + 1; }
};

template <class Body>
void for_each_block(int64_t context, Body body) {
  for (int64_t begin = 0; begin < context; begin += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, context - begin);
    body(QueryBlock{begin, rows, begin + rows});
  }
}

float score_scale(int64_t head_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

}  // namespace

void causal_attention_forward(const CausalAttentionShape& shape, ConstMatrix query, ConstMatrix key,
                              ConstMatrix value, Matrix out, float* log_sum,
                              CausalAttentionScratch& scratch) {
  const int64_t hd = shape.head_dim;
  const float scale = score_scale(hd);
  scratch.scores.ensure(kQueryBlock * shape.context);
  for (int64_t h = 0; h < shape.heads; ++h) {
    const int64_t kv = h / (shape.heads / shape.kv_heads);
    const ConstMatrix q = head_of(query, h, hd), k = head_of(key, kv, hd),
                      v = head_of(value, kv, hd);
    for_each_block(shape.context, [&](QueryBlock b) {
      const Matrix p(scratch.scores.data(), b.rows, b.keys);
      blas::gemm(Op::none, Op::transpose, scale, q.slice_rows(b.begin, b.rows),
                 k.slice_rows(0, b.keys), 0.0f, p);
      for (int64_t r = 0; r < b.rows; ++r) {
        const int64_t n = b.visible(r);
        float* __restrict row = p.row(r);
        const float top = row_math::maximum(row, n);
        vector_exp(row, top, row, n);
        const double total = row_math::sum(row, n);
        const float inverse = static_cast<float>(1.0 / total);
        for (int64_t i = 0; i < n; ++i) row[i] *= inverse;
        std::fill(row + n, row + b.keys, 0.0f);
        log_sum[h * shape.context + b.begin + r] =
            static_cast<float>(static_cast<double>(top) + std::log(total));
      }
      blas::gemm(Op::none, Op::none, 1.0f, p, v.slice_rows(0, b.keys), 0.0f,
                 head_of(out, h, hd).slice_rows(b.begin, b.rows));
    });
  }
}

void causal_attention_backward(const CausalAttentionShape& shape, ConstMatrix query,
                               ConstMatrix key, ConstMatrix value, ConstMatrix out,
                               const float* log_sum, ConstMatrix d_out, Matrix d_query,
                               Matrix d_key, Matrix d_value, CausalAttentionScratch& scratch) {
  const int64_t hd = shape.head_dim;
  const float scale = score_scale(hd);
  scratch.scores.ensure(kQueryBlock * shape.context);
  scratch.d_scores.ensure(kQueryBlock * shape.context);
  for (int64_t t = 0; t < shape.context; ++t) {
    std::fill_n(d_key.row(t), d_key.cols, 0.0f);
    std::fill_n(d_value.row(t), d_value.cols, 0.0f);
  }
  for (int64_t h = 0; h < shape.heads; ++h) {
    const int64_t kv = h / (shape.heads / shape.kv_heads);
    const ConstMatrix q = head_of(query, h, hd), k = head_of(key, kv, hd),
                      v = head_of(value, kv, hd);
    const ConstMatrix o = head_of(out, h, hd), d_o = head_of(d_out, h, hd);
    const Matrix d_q = head_of(d_query, h, hd), d_k = head_of(d_key, kv, hd),
                 d_v = head_of(d_value, kv, hd);
    for_each_block(shape.context, [&](QueryBlock b) {
      const Matrix p(scratch.scores.data(), b.rows, b.keys);
      const Matrix d_s(scratch.d_scores.data(), b.rows, b.keys);
      const ConstMatrix q_b = q.slice_rows(b.begin, b.rows);
      const ConstMatrix d_o_b = d_o.slice_rows(b.begin, b.rows);
      blas::gemm(Op::none, Op::transpose, scale, q_b, k.slice_rows(0, b.keys), 0.0f, p);
      blas::gemm(Op::none, Op::transpose, 1.0f, d_o_b, v.slice_rows(0, b.keys), 0.0f, d_s);
      for (int64_t r = 0; r < b.rows; ++r) {
        const int64_t t = b.begin + r, n = b.visible(r);
        float* __restrict row = p.row(r);
        float* __restrict d_row = d_s.row(r);
        vector_exp(row, log_sum[h * shape.context + t], row, n);
        // Softmax backward: sum over keys of p * dp equals <out, d_out>.
        const float mean = static_cast<float>(row_math::dot(o.row(t), d_o.row(t), hd));
        for (int64_t i = 0; i < n; ++i) d_row[i] = row[i] * (d_row[i] - mean);
        std::fill(row + n, row + b.keys, 0.0f);
        std::fill(d_row + n, d_row + b.keys, 0.0f);
      }
      blas::gemm(Op::transpose, Op::none, 1.0f, p, d_o_b, 1.0f, d_v.slice_rows(0, b.keys));
      blas::gemm(Op::none, Op::none, scale, d_s, k.slice_rows(0, b.keys), 0.0f,
                 d_q.slice_rows(b.begin, b.rows));
      blas::gemm(Op::transpose, Op::none, scale, d_s, q_b, 1.0f, d_k.slice_rows(0, b.keys));
    });
  }
}

}  // namespace airmoe::scheduler
