#include "scheduler/trunk/cross_entropy.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"
#include "comm/base/vector_math.hpp"
#include "scheduler/trunk/linear.hpp"
#include "scheduler/trunk/src/row_math.hpp"

namespace airmoe::scheduler {
namespace {

constexpr int64_t kChunkElements = int64_t{4} << 20;  ///< 16 MiB of logits
constexpr int64_t kFewestRows = 16;

int64_t rows_per_chunk(int64_t vocab) {
  return std::max(kFewestRows, kChunkElements / vocab);
}

/// -log softmax(row)[target]. On return row[i] = exp(row[i] - max) and total is their sum.
double row_loss(float* row, int64_t vocab, int32_t target, double& total) {
  AIRMOE_CHECK(target >= 0 && target < vocab, "target {} is not in [0, {})", target, vocab);
  const float top = row_math::maximum(row, vocab);
  const float at_target = row[target];
  vector_exp(row, top, row, vocab);
  total = row_math::sum(row, vocab);
  return std::log(total) + static_cast<double>(top) - static_cast<double>(at_target);
}

/// Calls body(first row, logits of the chunk) for every chunk.
template <class Body>
void for_each_chunk(ConstMatrix hidden, ConstMatrix embedding, CrossEntropyScratch& scratch,
                    Body body) {
  const int64_t vocab = embedding.rows;
  const int64_t chunk = std::min(hidden.rows, rows_per_chunk(vocab));
  scratch.logits.ensure(chunk * vocab);
  for (int64_t begin = 0; begin < hidden.rows; begin += chunk) {
    const int64_t rows = std::min(chunk, hidden.rows - begin);
    const Matrix logits(scratch.logits.data(), rows, vocab);
    linear_forward(hidden.slice_rows(begin, rows), embedding, logits);
    body(begin, logits);
  }
}

}  // namespace

double cross_entropy(ConstMatrix hidden, ConstMatrix embedding, std::span<const int32_t> targets,
                     CrossEntropyScratch& scratch) {
  double loss = 0.0;
  for_each_chunk(hidden, embedding, scratch, [&](int64_t begin, Matrix logits) {
    for (int64_t r = 0; r < logits.rows; ++r) {
      double total = 0.0;
      const int32_t target = targets[static_cast<std::size_t>(begin + r)];
      loss += row_loss(logits.row(r), logits.cols, target, total);
    }
  });
  return loss;
}

double cross_entropy_backward(ConstMatrix hidden, ConstMatrix embedding,
                              std::span<const int32_t> targets, float loss_scale, Matrix d_hidden,
                              Matrix d_embedding, CrossEntropyScratch& scratch) {
  double loss = 0.0;
  for_each_chunk(hidden, embedding, scratch, [&](int64_t begin, Matrix logits) {
    for (int64_t r = 0; r < logits.rows; ++r) {
      double total = 0.0;
      const int32_t target = targets[static_cast<std::size_t>(begin + r)];
      float* __restrict row = logits.row(r);
      loss += row_loss(row, logits.cols, target, total);
      const float scale = static_cast<float>(static_cast<double>(loss_scale) / total);
      for (int64_t i = 0; i < logits.cols; ++i) row[i] *= scale;
      row[target] -= loss_scale;
    }
    linear_backward_input(logits, embedding, 0.0f, d_hidden.slice_rows(begin, logits.rows));
    linear_backward_weight(logits, hidden.slice_rows(begin, logits.rows), d_embedding);
  });
  return loss;
}

}  // namespace airmoe::scheduler
