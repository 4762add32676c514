#include "apps/bench/list_overlap.hpp"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace airmoe::bench {

nlohmann::json list_overlap(std::span<const float> codebook, std::span<const int32_t> lists,
                            std::span<const int32_t> begin, int64_t dim, int64_t experts) {
  constexpr int64_t kSamples = 64, kMost = 32;
  const int64_t length = std::ssize(lists) / (std::ssize(begin) - 1);
  const auto row = [&](int64_t g) { return codebook.subspan(g * dim, dim); };
  const auto list = [&](int64_t g) { return lists.subspan(g * length, length); };
  std::vector<int64_t> used;
  std::vector<int32_t> times(static_cast<std::size_t>(experts), 0);
  for (int64_t g = 0; g + 1 < std::ssize(begin); ++g) {
    if (begin[g + 1] == begin[g]) continue;
    used.push_back(g);
    for (const int32_t e : list(g)) ++times[e];
  }
  nlohmann::json result = {
      {"codewords_with_tokens", used.size()},
      {"experts_in_any", experts - std::count(times.begin(), times.end(), 0)},
      {"lists_of_the_most_listed", *std::max_element(times.begin(), times.end())}};
  std::fill(times.begin(), times.end(), 0);
  const int64_t most = std::min<int64_t>(kMost, std::ssize(used));
  const int64_t samples = std::min<int64_t>(kSamples, std::ssize(used));
  std::vector<double> share(static_cast<std::size_t>(most + 1), 0.0);
  std::vector<float> similarity(used.size());
  std::vector<int64_t> near(used.size());
  for (int64_t s = 0; s < samples; ++s) {
    const auto of = row(used[s * std::ssize(used) / samples]);
    for (std::size_t i = 0; i < used.size(); ++i) {
      similarity[i] = std::inner_product(of.begin(), of.end(), row(used[i]).begin(), 0.0f);
    }
    std::iota(near.begin(), near.end(), 0);
    std::partial_sort(near.begin(), near.begin() + most, near.end(),
                      [&](int64_t a, int64_t b) { return similarity[a] > similarity[b]; });
    int64_t together = 0;
    for (int64_t k = 1; k <= most; ++k) {
      for (const int32_t e : list(used[near[k - 1]])) together += times[e]++ == 0;
      share[k] += static_cast<double>(together) / static_cast<double>(k * length * samples);
    }
    for (int64_t k = 0; k < most; ++k) {
      for (const int32_t e : list(used[near[k]])) times[e] = 0;
    }
  }
  for (int64_t k = 2; k <= most; k *= 2) result["union_of_nearest"][std::to_string(k)] = share[k];
  return result;
}

}  // namespace airmoe::bench
