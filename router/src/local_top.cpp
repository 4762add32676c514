#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/base/error.hpp"
#include "router/shortlist.hpp"
#include "router/src/top_k_kernels.hpp"

namespace airmoe::router {
namespace {

constexpr int64_t kBlock = 256;  // experts along the lanes of a tile

// Below this no draw of the jitter can lift a score to the threshold. The widening covers rounding.
float jitter_floor(float threshold, float stddev) {
  return threshold - stddev * kJitterBound * 1.001f - std::abs(threshold) * 1e-6f;
}

}  // namespace

void local_top(ConstMatrix codewords, std::span<const int32_t> codeword_ids,
               ConstMatrix unit_centroids, std::span<const int32_t> expert_ids, int64_t keep,
               const std::optional<Jitter>& jitter, LocalTop& out, ShortlistWorkspace& workspace) {
  const int64_t n = codewords.rows, experts = unit_centroids.rows;
  AIRMOE_CHECK(codewords.cols == unit_centroids.cols,
               "local_top: codewords have {} columns, "
               "centroids {}",
               codewords.cols, unit_centroids.cols);
  AIRMOE_CHECK(static_cast<int64_t>(codeword_ids.size()) == n, "local_top: {} ids of {} codewords",
               codeword_ids.size(), n);
  AIRMOE_CHECK(static_cast<int64_t>(expert_ids.size()) == experts,
               "local_top: {} ids of {} experts", expert_ids.size(), experts);
  AIRMOE_CHECK(keep >= 1, "local_top: keep {}", keep);
  out.rows = n;
  out.stride = std::min(keep, experts);
  out.score.ensure(n * out.stride);
  out.expert.ensure(n * out.stride);
  if (n == 0 || experts == 0) return;

  const bool noisy = jitter && jitter->stddev != 0.0f;
  RunningTop& top = workspace.top;
  top.reset(n, out.stride, kBlock);
  workspace.rows.ensure(n);
  std::iota(workspace.rows.begin(), workspace.rows.end(), 0);
  workspace.tile.ensure(n * kBlock);
  workspace.hit_score.ensure(kBlock);
  workspace.hit_expert.ensure(kBlock);
  const ConstPanel panel{codewords.data, workspace.rows.data(), n, codewords.cols, codewords.ld};
  // Codewords are the panel and experts the lanes, so that a codeword's scores are contiguous.
  for (int64_t begin = 0; begin < experts; begin += kBlock) {
    const int64_t block = std::min(kBlock, experts - begin);
    const int32_t* ids = expert_ids.data() + begin;
    panel_scores(panel, unit_centroids.slice_rows(begin, block), workspace.tile.data(),
                 workspace.panel);
    for (int64_t g = 0; g < n; ++g) {
      const float* scores = workspace.tile.data() + g * tile_ld(block);
      if (!noisy) {
        top.offer(g, scores, ids, block);
        continue;
      }
      const float threshold = top.threshold(g);
      int64_t ties = std::isinf(threshold) ? block : 0;
      const int64_t hits =
          detail::compress({scores, ids, 0, block}, jitter_floor(threshold, jitter->stddev), ties,
                           workspace.hit_score.data(), workspace.hit_expert.data(), kBlock);
      add_jitter(workspace.hit_score.data(), workspace.hit_expert.data(), hits, jitter->stddev,
                 jitter->stream, static_cast<uint32_t>(codeword_ids[g]), 0);
      top.offer(g, workspace.hit_score.data(), workspace.hit_expert.data(), hits);
    }
  }
  for (int64_t g = 0; g < n; ++g) {
    top.finish(g, out.score.data() + g * out.stride, out.expert.data() + g * out.stride);
  }
}

}  // namespace airmoe::router
