#include "apps/bench/expert_runs.hpp"

#include <algorithm>

namespace airmoe::bench {
namespace {

constexpr int64_t kBlockTokens = 64;

MatrixView<double> token_matrix(Buffer<double>& buffer, const WorkloadShape& shape) {
  return {buffer.data(), shape.all_tokens(), shape.dim};
}

}  // namespace

ExpertRuns::ExpertRuns(Workload& work)
    : work_(work),
      table_(work.table()),
      gradients_(work.gradients()),
      saved_(work_.shape().pairs() * table_.saved_per_pair(), 0.0f),
      d_gate_(work_.shape().pairs(), 0.0f),
      y_(work_.shape().all_tokens() * work_.shape().dim, 0.0),
      d_hidden_(work_.shape().all_tokens() * work_.shape().dim, 0.0),
      quantum_(work_.shape().all_tokens(), kOutputQuantum) {}

/// body(block, first token) for blocks of at most kBlockTokens tokens of one codeword.
template <class Body>
void ExpertRuns::for_each_block(Body body) {
  const WorkloadShape& shape = work_.shape();
  for (int64_t g = 0; g < shape.codewords; ++g) {
    const SelectionView selection = work_.selection(g);
    for (int64_t begin = 0; begin < shape.tokens; begin += kBlockTokens) {
      const int64_t size = std::min(kBlockTokens, shape.tokens - begin);
      const experts::DenseBlock block{
          work_.hidden(g).slice_rows(begin, size),
          work_.candidates(g),
          shape.shortlist,
          {size, selection.offset + begin, selection.position, selection.gate}};
      body(block, g * shape.tokens + begin);
    }
  }
}

void ExpertRuns::forward_dense() {
  const MatrixView<double> y = token_matrix(y_, work_.shape());
  for_each_block([&](const experts::DenseBlock& block, int64_t first) {
    experts::forward_dense(table_, block, saved_.data(), y.slice_rows(first, block.hidden.rows),
                           dense_);
  });
}

void ExpertRuns::backward_dense() {
  const MatrixView<double> d_hidden = token_matrix(d_hidden_, work_.shape());
  for_each_block([&](const experts::DenseBlock& block, int64_t first) {
    const int64_t size = block.hidden.rows;
    block_grouping_.build(block.selection, block.count);
    experts::backward_dense(table_, block, block_grouping_, saved_.data(),
                            work_.d_output().slice_rows(first, size), d_gate_.data(),
                            quantum_.data(), d_hidden.slice_rows(first, size), gradients_, dense_);
  });
}

void ExpertRuns::forward_grouped() {
  grouping_.build(work_.selection(), work_.shape().experts);
  experts::forward_grouped(table_, grouping_, work_.hidden(), work_.selection(), saved_.data(),
                           token_matrix(y_, work_.shape()), grouped_);
}

void ExpertRuns::backward_grouped() {
  experts::backward_grouped(table_, grouping_, work_.hidden(), work_.selection(), saved_.data(),
                            work_.d_output(), d_gate_.data(), quantum_.data(),
                            token_matrix(d_hidden_, work_.shape()), gradients_, grouped_);
}

}  // namespace airmoe::bench
