#pragma once
// Random planning problems of small size, and small helpers for tests of placements.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "scheduler/placement/plan.hpp"

namespace airmoe::scheduler::test {

/// Lists drawn around a few themes: codewords of a theme share candidates. Owns what PlanInput
/// views.
struct Problem {
  std::vector<int32_t> lists;
  std::vector<double> tokens;
  PlanInput input;

  Problem(int ranks, int64_t experts, int64_t codewords, int64_t length, double budget,
          uint32_t seed = 1, int themes = 4) {
    std::mt19937 random(seed);
    for (int64_t g = 0; g < codewords; ++g) {
      add_list(random, experts, length, g % themes, themes);
      tokens.push_back(static_cast<double>(random() % 50));
    }
    input = {.ranks = ranks,
             .experts = experts,
             .codewords = codewords,
             .length = length,
             .lists = lists,
             .tokens = tokens,
             .copy_budget = budget,
             .move_homes = true,
             .costs = {.per_token_rank = 4,
                       .shared_token_rank = 6,
                       .per_copy_fetch = 3,
                       .per_copy_return = 5,
                       .used_fraction = 0.5}};
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  /// Replaces `count` entries of every list by experts that are not in it.
  void change_entries(int64_t count, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t g = 0; g < input.codewords; ++g) {
      const auto begin = lists.begin() + g * input.length, end = begin + input.length;
      for (int64_t i = 0; i < count; ++i) {
        int32_t fresh = 0;
        do {
          fresh = static_cast<int32_t>(random() % static_cast<uint64_t>(input.experts));
        } while (std::find(begin, end, fresh) != end);
        begin[static_cast<int64_t>(random() % static_cast<uint64_t>(input.length))] = fresh;
      }
    }
  }

 private:
  void add_list(std::mt19937& random, int64_t experts, int64_t length, int64_t theme, int themes) {
    std::vector<double> key(static_cast<std::size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) {
      const double far = e * themes / experts == theme ? 0 : 0.8;
      key[e] = far + static_cast<double>(random()) / 4294967296.0;
    }
    std::vector<int32_t> order(key.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key[a] < key[b]; });
    lists.insert(lists.end(), order.begin(), order.begin() + length);
  }
};

}  // namespace airmoe::scheduler::test
