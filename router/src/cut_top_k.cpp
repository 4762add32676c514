#include <algorithm>
#include <limits>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/vector_math.hpp"
#include "router/select.hpp"
#include "router/src/top_k_kernels.hpp"

namespace airmoe::router {
namespace {

// Eight chains by index modulo 8: the same bits on every processor.
double ordered_sum(const float* x, int64_t count) {
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) sum[j] += x[i + j];
  }
  for (int64_t j = 0; i + j < count; ++j) sum[j] += x[i + j];
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

}  // namespace

void cut_top_k(std::span<const float> scores, std::span<const int64_t> sizes, int64_t k,
               std::span<Cut> cuts, std::span<int32_t> taken, CutWorkspace& workspace) {
  const int64_t total = static_cast<int64_t>(scores.size());
  AIRMOE_CHECK(cuts.size() == sizes.size() && taken.size() == sizes.size(),
               "cut_top_k: {} sizes, {} cuts, {} taken", sizes.size(), cuts.size(), taken.size());
  AIRMOE_CHECK(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) == total,
               "cut_top_k: slice sizes do not add up to {} scores", total);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int64_t kept = std::min(k, total);
  float threshold = kInfinity;  // nothing
  int64_t ties = 0;
  if (kept > 0 && kept == total) {
    threshold = -kInfinity;
    ties = total;
  } else if (kept > 0) {
    const detail::KthLargest kth = detail::kth_largest(scores.data(), total, kept);
    threshold = kth.threshold;
    ties = kept - kth.above;
  }
  // The selected scores of all slices, one after the other; room for whole vectors behind them.
  constexpr int64_t kSlack = 16;
  workspace.selected.ensure(kept + kSlack);
  workspace.ids.ensure(kept + kSlack);
  float* selected = workspace.selected.data();
  int64_t begin = 0, count = 0;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    const int64_t before = ties;
    const int64_t found =
        detail::compress({scores.data() + begin, nullptr, 0, sizes[r]}, threshold, ties,
                         selected + count, workspace.ids.data(), kept + kSlack - count);
    cuts[r] = {threshold, static_cast<int32_t>(before - ties), 0.0f, 0.0f};
    taken[r] = static_cast<int32_t>(found);
    begin += sizes[r];
    count += found;
  }
  if (count == 0) return;
  const float max = *std::max_element(selected, selected + count);
  vector_exp(selected, max, selected, count);
  const float inverse_sum = static_cast<float>(1.0 / ordered_sum(selected, count));
  for (Cut& cut : cuts) {
    cut.max = max;
    cut.inverse_sum = inverse_sum;
  }
}

int64_t apply_cut(const Cut& cut, const int32_t* position, const float* score, int64_t count,
                  int32_t* position_out, float* gate_out) {
  int64_t ties = cut.ties;
  const int64_t kept = detail::compress({score, position, 0, count}, cut.threshold, ties, gate_out,
                                        position_out, count);
  vector_exp(gate_out, cut.max, gate_out, kept);
  for (int64_t i = 0; i < kept; ++i) gate_out[i] *= cut.inverse_sum;
  return kept;
}

}  // namespace airmoe::router
