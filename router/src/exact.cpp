#include "router/exact.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "comm/base/blas.hpp"
#include "comm/base/error.hpp"
#include "comm/base/vector_math.hpp"

namespace airmoe::router {
namespace {

// One GEMM of this size keeps the BLAS near its peak, and its result in the second-level cache.
constexpr int64_t kTokens = 512, kExperts = 1024;

// A sum of exponentials relative to its largest term.
struct ExpSum {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0.0;

  // Adds exp of each score; the scores are used up.
  void add(float* score, int64_t count) {
    const float block_max = *std::max_element(score, score + count);
    if (block_max > max) {
      sum *= std::exp(max - block_max);
      max = block_max;
    }
    if (std::isinf(max)) return;  // nothing but minus infinity so far, or plus infinity
    vector_exp(score, static_cast<float>(max), score, count);
    double part[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int64_t j = 0; j < 8; ++j) part[j] += score[i + j];
    }
    for (; i < count; ++i) part[0] += score[i];
    for (const double p : part) sum += p;
  }
  double log() const { return std::isinf(max) ? max : max + std::log(sum); }
};

}  // namespace

void exact_top(ConstMatrix hidden, ConstMatrix unit_centroids, int32_t first_expert, int64_t k,
               ExactTop& out, ExactWorkspace& workspace, bool with_log_sum_exp) {
  const int64_t n = hidden.rows, experts = unit_centroids.rows;
  AIRMOE_CHECK(hidden.cols == unit_centroids.cols,
               "exact_top: tokens have {} columns, centroids {}", hidden.cols, unit_centroids.cols);
  AIRMOE_CHECK(k >= 1, "exact_top: k {}", k);
  out.stride = std::min(k, experts);
  out.score.ensure(n * out.stride);
  out.expert.ensure(n * out.stride);
  out.log_sum_exp.ensure(with_log_sum_exp ? n : 0);
  out.log_sum_exp.fill(-std::numeric_limits<double>::infinity());
  if (n == 0 || experts == 0) return;

  workspace.scores.ensure(std::min(n, kTokens) * std::min(experts, kExperts));
  ExpSum exp_sum[kTokens];
  for (int64_t t0 = 0; t0 < n; t0 += kTokens) {
    const int64_t tokens = std::min(kTokens, n - t0);
    workspace.top.reset(tokens, out.stride, kExperts);
    if (with_log_sum_exp) std::fill_n(exp_sum, tokens, ExpSum{});
    for (int64_t e0 = 0; e0 < experts; e0 += kExperts) {
      const int64_t block = std::min(kExperts, experts - e0);
      const Matrix scores(workspace.scores.data(), tokens, block);
      blas::gemm(blas::Op::none, blas::Op::transpose, 1.0f, hidden.slice_rows(t0, tokens),
                 unit_centroids.slice_rows(e0, block), 0.0f, scores);
      for (int64_t t = 0; t < tokens; ++t) {
        workspace.top.offer(t, scores.row(t), first_expert + static_cast<int32_t>(e0), block);
        if (with_log_sum_exp) exp_sum[t].add(scores.row(t), block);
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = (t0 + t) * out.stride;
      workspace.top.finish(t, out.score.data() + at, out.expert.data() + at);
      if (with_log_sum_exp) out.log_sum_exp[t0 + t] = exp_sum[t].log();
    }
  }
}

}  // namespace airmoe::router
