#include <algorithm>
#include <limits>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"
#include "comm/base/vector_math.hpp"
#include "router/select.hpp"
#include "router/src/top_k_kernels.hpp"

namespace airmoe::router {
namespace {

// Exact, so the eight chains, which let the compiler use vectors, do not show.
double exact_sum(const float* x, int64_t count) {
  constexpr double rounding = rounding_constant(kNormaliserQuantum);
  double sum[8] = {};
  const auto add = [&](int64_t i, int64_t j) {
    sum[j] += round_to_quantum(static_cast<double>(x[i + j]), rounding);
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) add(i, j);
  }
  for (int64_t j = 0; i + j < count; ++j) add(i, j);
  return std::accumulate(sum, sum + 8, 0.0);
}

}  // namespace

bool cut_top_k(std::span<const float> scores, std::span<const int64_t> sizes, int64_t k,
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
  bool contested = false;  // more entries equal to the threshold than fit
  if (kept > 0 && kept == total) {
    threshold = -kInfinity;
    ties = total;
  } else if (kept > 0) {
    const detail::KthLargest kth = detail::kth_largest(scores.data(), total, kept);
    threshold = kth.threshold;
    ties = kept - kth.above;
    contested = kth.equal > ties && sizes.size() > 1;
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
  if (count == 0) return false;
  const float max = *std::max_element(selected, selected + count);
  vector_exp(selected, max, selected, count);
  const float inverse_sum = static_cast<float>(1.0 / exact_sum(selected, count));
  for (Cut& cut : cuts) {
    cut.max = max;
    cut.inverse_sum = inverse_sum;
  }
  if (!contested) return false;
  int64_t tied_slices = 0;
  const float* score = scores.data();
  for (const int64_t size : sizes) {
    tied_slices += std::any_of(score, score + size, [&](float x) { return is_tied(x, threshold); });
    score += size;
  }
  return tied_slices > 1;
}

void resolve_ties(std::span<const float> scores, std::span<const int32_t> ids,
                  std::span<const int64_t> sizes, std::span<Cut> cuts, std::span<int32_t> taken,
                  CutWorkspace& workspace) {
  AIRMOE_CHECK(ids.size() == scores.size(), "resolve_ties: {} ids of {} scores", ids.size(),
               scores.size());
  if (cuts.empty()) return;
  const float threshold = cuts[0].threshold;
  const auto total = static_cast<int64_t>(scores.size());
  workspace.ids.ensure(total);
  int32_t* tied = workspace.ids.data();
  int64_t ties = 0, count = 0;
  for (const Cut& cut : cuts) ties += cut.ties;
  if (ties == 0) return;
  for (int64_t i = 0; i < total; ++i) {
    if (is_tied(scores[i], threshold)) tied[count++] = ids[i];
  }
  std::nth_element(tied, tied + ties - 1, tied + count);
  const int32_t last = tied[ties - 1];
  int64_t begin = 0;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    int32_t mine = 0;
    for (int64_t i = begin; i < begin + sizes[r]; ++i) {
      mine += is_tied(scores[i], threshold) && ids[i] <= last;
    }
    taken[r] += mine - cuts[r].ties;
    cuts[r].ties = mine;
    begin += sizes[r];
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
