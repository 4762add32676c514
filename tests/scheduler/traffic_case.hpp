#pragma once
// Small random routings and placements for the predictors' tests.

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "comm/base/partition.hpp"
#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::traffic_case {

using scheduler::Placement;
using scheduler::RoutingTrace;

struct Sizes {
  int64_t tokens = 40, experts = 23, codewords = 5, length = 9, active = 3;
};

template <class T>
std::vector<T> shuffled(std::mt19937& random, T count) {
  std::vector<T> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), T{0});
  std::shuffle(all.begin(), all.end(), random);
  return all;
}

inline RoutingTrace random_trace(const Sizes& s, uint32_t seed) {
  std::mt19937 random(seed);
  RoutingTrace t;
  t.experts = s.experts;
  t.active = s.active;
  t.length = s.length;
  for (int64_t g = 0; g < s.codewords; ++g) {
    const auto all = shuffled<int32_t>(random, static_cast<int32_t>(s.experts));
    t.lists.insert(t.lists.end(), all.begin(), all.begin() + s.length);
  }
  for (int64_t i = 0; i < s.tokens; ++i) {
    // Skewed: half of the tokens have codeword 0.
    const bool heavy = random() % 2 == 0;
    const auto g = heavy ? 0 : static_cast<int32_t>(random() % static_cast<uint32_t>(s.codewords));
    t.codeword.push_back(g);
    auto places = shuffled<int32_t>(random, static_cast<int32_t>(s.length));
    places.resize(static_cast<std::size_t>(s.active));
    std::vector<int32_t> chosen;
    for (const int32_t p : places) chosen.push_back(t.lists[g * s.length + p]);
    std::sort(chosen.begin(), chosen.end());
    t.expert.insert(t.expert.end(), chosen.begin(), chosen.end());
  }
  return t;
}

/// Random homes with equal counts; with `copies` some codewords have several parts, covers of one
/// to a few ranks, and scorers anywhere in them.
inline Placement random_plan(const RoutingTrace& t, int ranks, bool copies, uint32_t seed) {
  std::mt19937 random(seed);
  Placement p;
  p.ranks = ranks;
  p.copies = copies;
  const BlockPartition blocks{t.experts, ranks};
  p.home.resize(static_cast<std::size_t>(t.experts));
  const auto places = shuffled<int64_t>(random, t.experts);
  for (int64_t e = 0; e < t.experts; ++e) {
    p.home[e] = static_cast<int32_t>(blocks.owner(places[e]));
  }
  p.part_begin = {0};
  for (int64_t g = 0; g < t.codewords(); ++g) {
    const int parts = copies ? 1 + static_cast<int>(random() % 3) : 1;
    for (int v = 0; v < parts; ++v) {
      auto cover = shuffled<int>(random, ranks);
      cover.resize(1 + random() % static_cast<std::size_t>(std::min(ranks, 3)));
      p.primary.push_back(cover[0]);
      if (!copies) continue;
      for (int64_t j = 0; j < t.length; ++j) {
        p.candidate_rank.push_back(static_cast<uint16_t>(cover[random() % cover.size()]));
      }
    }
    p.part_begin.push_back(p.part_begin.back() + parts);
  }
  return p;
}

}  // namespace airmoe::traffic_case
