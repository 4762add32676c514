#include <algorithm>
#include <numeric>

#include "comm/base/panel.hpp"
#include "router/select.hpp"
#include "router/src/top_k_kernels.hpp"

namespace airmoe::router {

void select_top_k(const float* tile, int64_t count, int64_t n, int64_t k, int32_t* position,
                  float* score) {
  const int64_t kept = std::min(k, count);
  if (n == 0 || kept <= 0) return;
  const int64_t ld = tile_ld(n);
  // Sixteen tokens become contiguous arrays; the padding keeps them off each other's cache sets.
  const int64_t stride = (count + kTileLanes - 1) / kTileLanes * kTileLanes + kTileLanes;
  thread_local Buffer<float> columns;
  columns.ensure(kTileLanes * stride);
  for (int64_t t0 = 0; t0 < n; t0 += kTileLanes) {
    detail::transpose_lanes(tile + t0, ld, count, columns.data(), stride);
    for (int64_t t = t0; t < std::min(n, t0 + kTileLanes); ++t) {
      const float* x = columns.data() + (t - t0) * stride;
      int32_t* position_out = position + t * kept;
      float* score_out = score + t * kept;
      if (kept == count) {
        std::iota(position_out, position_out + count, 0);
        std::copy_n(x, count, score_out);
        continue;
      }
      const detail::KthLargest kth = detail::kth_largest(x, count, kept);
      int64_t ties = kept - kth.above;
      detail::compress({x, nullptr, 0, count}, kth.threshold, ties, score_out, position_out, kept);
    }
  }
}

}  // namespace airmoe::router
