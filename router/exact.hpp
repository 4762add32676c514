#pragma once
// The exact oracle: scores of tokens against all local experts. The only place with work
// proportional to tokens x experts; used on small probe sets, by tests and by the benchmark
// baseline.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::router {

/// Local part of the exact routing of n tokens: the k best local experts of each, and the softmax
/// partition sum.
struct ExactTop {
  int64_t stride = 0;          ///< min(k, local experts)
  Buffer<float> score;         ///< Shape: [n, stride], order (score descending, id ascending)
  Buffer<int32_t> expert;      ///< global ids. Shape: [n, stride]
  Buffer<double> log_sum_exp;  ///< over all local experts. Shape: [n]
};
struct ExactWorkspace {
  Buffer<float> scores, candidate_score;
  Buffer<int32_t> candidate_expert;
};
/// Blocks of experts x blocks of tokens through BLAS; memory O(block). Local.
void exact_top(ConstMatrix hidden, ConstMatrix unit_centroids, int32_t first_expert, int64_t k,
               ExactTop& out, ExactWorkspace& workspace);

}  // namespace airmoe::router
