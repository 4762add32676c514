#include "scheduler/placement/src/parts.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace airmoe::scheduler::placement {
namespace {

Parts make_parts(const PlanInput& input, const std::vector<int32_t>& count) {
  Parts parts;
  parts.begin.push_back(0);
  for (int64_t g = 0; g < input.codewords; ++g) {
    for (int32_t i = 0; i < count[g]; ++i) {
      parts.codeword.push_back(static_cast<int32_t>(g));
      parts.tokens.push_back(input.tokens[g] / count[g]);
    }
    parts.begin.push_back(parts.begin.back() + count[g]);
  }
  return parts;
}

std::vector<int32_t> counts(const PlanInput& input, double most_tokens) {
  std::vector<int32_t> count(static_cast<std::size_t>(input.codewords), 1);
  for (int64_t g = 0; g < input.codewords && most_tokens > 0; ++g) {
    const double pieces = std::ceil(input.tokens[g] / most_tokens);
    count[g] = static_cast<int32_t>(std::clamp(pieces, 1.0, static_cast<double>(input.ranks)));
  }
  return count;
}

/// Fewest parts of which a whole number makes up `least` to 1.05 shares, so that they pack well;
/// parts up to `light` shares fill gaps as they are.
std::vector<int32_t> fitting_counts(const PlanInput& input, double share, double light,
                                    double least) {
  constexpr double kMostShare = 1.05;
  std::vector<int32_t> count = counts(input, kMostShare * share);
  for (int64_t g = 0; g < input.codewords && share > 0; ++g) {
    for (; count[g] < input.ranks; ++count[g]) {
      const double size = input.tokens[g] / share / count[g];
      if (size <= light || std::floor(kMostShare / size) * size >= least) break;
    }
  }
  return count;
}

/// Heaviest rank when parts go, heaviest first, to the rank with the least tokens.
double packed_load(const Parts& parts, int ranks) {
  std::vector<double> tokens = parts.tokens;
  std::sort(tokens.begin(), tokens.end(), std::greater<>());
  std::priority_queue<double, std::vector<double>, std::greater<>> load(
      std::greater<>(), std::vector<double>(static_cast<std::size_t>(ranks), 0.0));
  double heaviest = 0;
  for (const double t : tokens) {
    const double sum = load.top() + t;
    load.pop();
    load.push(sum);
    heaviest = std::max(heaviest, sum);
  }
  return heaviest;
}

}  // namespace

Parts split_codewords(const PlanInput& input) {
  // A part of 1.05 shares still fits into the 1.10 that a rank may have. What is packed to 1.05
  // leaves freedom to choose ranks by affinity; 1.075 just fits.
  constexpr double kMostShare = 1.05, kFiner = 0.8, kFinest = 0.1;
  const double share = std::accumulate(input.tokens.begin(), input.tokens.end(), 0.0) / input.ranks;
  const auto packs = [&](const Parts& parts, double most) {
    return packed_load(parts, input.ranks) <= most * share;
  };
  if (Parts parts = make_parts(input, counts(input, kMostShare * share)); packs(parts, 1.05)) {
    return parts;
  }
  for (const double packed : {1.05, 1.075}) {
    for (const auto& [light, least] : {std::pair{0.3, 0.94}, {0.2, 0.94}, {0.1, 0.97}}) {
      Parts parts = make_parts(input, fitting_counts(input, share, light, least));
      if (packs(parts, packed)) return parts;
    }
  }
  for (double most = kMostShare * kFiner;; most *= kFiner) {
    Parts parts = make_parts(input, counts(input, most * share));
    if (most < kFinest || packs(parts, 1.05)) return parts;
  }
}

Parts whole_codewords(const PlanInput& input) {
  return make_parts(input, std::vector<int32_t>(static_cast<std::size_t>(input.codewords), 1));
}

Parts keep_parts(const PlanInput& input, const std::vector<int32_t>& previous) {
  const Parts fresh = split_codewords(input);
  std::vector<int32_t> count(static_cast<std::size_t>(input.codewords));
  for (std::size_t g = 0; g < count.size(); ++g) {
    const int32_t had = previous[g + 1] - previous[g], wants = fresh.begin[g + 1] - fresh.begin[g];
    count[g] = wants >= 2 * had || 2 * wants <= had ? wants : had;
  }
  return make_parts(input, count);
}

std::vector<int32_t> heaviest_first(const Parts& parts) {
  std::vector<int32_t> order(parts.codeword.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return parts.tokens[a] > parts.tokens[b]; });
  return order;
}

}  // namespace airmoe::scheduler::placement
