#include "scheduler/placement/src/codeword_groups.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <tuple>
#include <utility>

#include <metis.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler::placement {
namespace {

constexpr int64_t kNeighbours = 64;    // edges that a vertex asks for
constexpr double kPairsLooked = 1e7;   // (part, part) pairs looked at to weigh edges
constexpr int32_t kLeastPerGroup = 2;  // vertices; METIS complains when it has fewer
constexpr double kWeightScale = 256, kTokenScale = 1e6;  // METIS wants integers

struct Edge {
  int32_t from, to;
  float weight;
  /// Equal edges that differ in rounding: the same one comes first in both directions.
  bool operator<(const Edge& o) const {
    return std::tie(from, to, weight) < std::tie(o.from, o.to, o.weight);
  }
  bool operator==(const Edge& o) const { return from == o.from && to == o.to; }
};

/// Both directions of the heaviest edges of every vertex, sorted.
std::vector<Edge> edges(const PlanInput& input, const Parts& parts, const InvertedLists& lists) {
  // A multiple of the lists' own stride: a sample of their sample.
  const int64_t stride =
      lists.stride() * std::max<int64_t>(1, std::llround(lists.pairs() / kPairsLooked));
  const auto vertices = static_cast<std::size_t>(parts.count());
  std::vector<float> weight(vertices);
  std::vector<int32_t> touched;
  std::vector<Edge> out;
  for (int64_t p = 0; p < parts.count(); ++p) {
    if (parts.tokens[p] == 0) continue;
    touched.clear();
    const int32_t* list = input.lists.data() + parts.codeword[p] * input.length;
    for (int64_t j = 0; j < input.length; ++j) {
      if (!InvertedLists::in_sample(list[j], stride)) continue;
      const float each = 1.0f / static_cast<float>(lists.count(list[j]));
      for (const int32_t q : lists.parts_of(list[j])) {
        if (weight[q] == 0) touched.push_back(q);
        weight[q] += each;
      }
    }
    weight[p] = 0;
    std::erase(touched, static_cast<int32_t>(p));
    const auto heavier = [&](int32_t a, int32_t b) {
      return weight[a] != weight[b] ? weight[a] > weight[b] : a < b;
    };
    const auto kept = std::min<std::size_t>(touched.size(), kNeighbours);
    std::nth_element(touched.begin(), touched.begin() + kept, touched.end(), heavier);
    for (std::size_t i = 0; i < touched.size(); ++i) {
      const int32_t q = touched[i];
      if (i < kept) {
        out.push_back({static_cast<int32_t>(p), q, weight[q]});
        out.push_back({q, static_cast<int32_t>(p), weight[q]});
      }
      weight[q] = 0;
    }
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace

CodewordGraph::CodewordGraph(const PlanInput& input, const Parts& parts, const InvertedLists& lists)
    : begin_(static_cast<std::size_t>(parts.count()) + 1) {
  for (const Edge& edge : edges(input, parts, lists)) {
    ++begin_[edge.from + 1];
    to_.push_back(edge.to);
    edge_weight_.push_back(std::max(1, static_cast<int32_t>(edge.weight * kWeightScale)));
  }
  std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
  const double tokens = std::accumulate(input.tokens.begin(), input.tokens.end(), 0.0);
  for (const double t : parts.tokens) {
    vertex_weight_.push_back(
        tokens > 0 ? static_cast<int32_t>(std::llround(kTokenScale * t / tokens)) : 1);
  }
}

std::vector<int32_t> CodewordGraph::heaviest_to_lightest(const std::vector<double>& share) const {
  std::vector<int32_t> order(vertex_weight_.size()), group(vertex_weight_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return vertex_weight_[a] > vertex_weight_[b]; });
  using Load = std::pair<double, int32_t>;  // weight over share, group
  std::priority_queue<Load, std::vector<Load>, std::greater<>> load;
  for (std::size_t g = 0; g < share.size(); ++g) load.push({0, static_cast<int32_t>(g)});
  for (const int32_t v : order) {
    const auto [weight, g] = load.top();
    load.pop();
    group[v] = g;
    load.push({weight + (vertex_weight_[v] + 1) / share[g], g});
  }
  return group;
}

std::vector<int32_t> CodewordGraph::partition(const std::vector<double>& share) const {
  static_assert(sizeof(idx_t) == sizeof(int32_t), "METIS was built with 64-bit indices");
  auto vertices = static_cast<idx_t>(vertex_weight_.size());
  auto groups = static_cast<idx_t>(share.size());
  std::vector<int32_t> group(vertex_weight_.size());
  if (groups == 1 || vertices == 0) return group;
  if (vertices < kLeastPerGroup * groups) return heaviest_to_lightest(share);
  // METIS reads and does not write, but its interface says otherwise.
  std::vector<idx_t> begin = begin_, to = to_, edge_weight = edge_weight_, weight = vertex_weight_;
  std::vector<real_t> target(share.begin(), share.end());
  idx_t options[METIS_NOPTIONS], constraints = 1, cut = 0;
  METIS_SetDefaultOptions(options);
  options[METIS_OPTION_SEED] = 1;
  options[METIS_OPTION_UFACTOR] = 50;
  const int status = METIS_PartGraphKway(&vertices, &constraints, begin.data(), to.data(),
                                         weight.data(), nullptr, edge_weight.data(), &groups,
                                         target.data(), nullptr, options, &cut, group.data());
  AIRMOE_CHECK(status == METIS_OK, "METIS_PartGraphKway returned {}", status);
  return group;
}

}  // namespace airmoe::scheduler::placement
