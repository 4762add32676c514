#pragma once
// The exact oracle: scores of tokens against all local experts. The only place with work
// proportional to tokens x experts; used on small probe sets, by tests and by the benchmark
// baseline.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"
#include "router/running_top.hpp"

namespace airmoe::router {

/// Local part of the exact routing of n tokens: the k best local experts of each, and the softmax
/// partition sum.
struct ExactTop {
  int64_t stride = 0;          ///< min(k, local experts)
  Buffer<float> score;         ///< Shape: [n, stride], order (score descending, id ascending)
  Buffer<int32_t> expert;      ///< global ids. Shape: [n, stride]
  Buffer<double> log_sum_exp;  ///< over all local experts, minus infinity if none. Shape: [n]
};

struct ExactWorkspace {
  RunningTop top;
  Buffer<float> scores;
};

/// Large blocks of tokens x experts through BLAS, filtered by a running threshold per token, so
/// that the products dominate the time. Memory: 2 MiB of scores and O(512 * k); no tokens x
/// experts.
/// @param with_log_sum_exp  false leaves out the exponentials over all experts (log_sum_exp empty):
///                          what a benchmark of full scoring should measure
/// Local. Throws Error when shapes disagree or k < 1.
void exact_top(ConstMatrix hidden, ConstMatrix unit_centroids, int32_t first_expert, int64_t k,
               ExactTop& out, ExactWorkspace& workspace, bool with_log_sum_exp = true);

}  // namespace airmoe::router
