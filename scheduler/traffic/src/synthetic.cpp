#include "scheduler/traffic/synthetic.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int kDim = 24;
constexpr int64_t kCodewordsPerCluster = 16;
constexpr int64_t kSequence = 64;
using Point = std::array<float, kDim>;

float dot(const Point& a, const Point& b) {
  float sum = 0;
  for (int k = 0; k < kDim; ++k) sum += a[k] * b[k];
  return sum;
}

Point unit(Point p) {
  const float scale = 1 / std::sqrt(std::max(dot(p, p), 1e-20f));
  for (float& x : p) x *= scale;
  return p;
}

// Normal noise of length about 1, drawn at `index`.
Point noise(const RandomStream& stream, int64_t index) {
  Point p;
  stream.fill_normal(p.data(), kDim, static_cast<uint64_t>(index) * kDim,
                     1 / std::sqrt(static_cast<float>(kDim)));
  return p;
}

Point near(const Point& centre, const RandomStream& stream, int64_t index, double spread) {
  Point p = noise(stream, index);
  for (int k = 0; k < kDim; ++k) p[k] = centre[k] + static_cast<float>(spread) * p[k];
  return unit(p);
}

struct Scored {
  float score;
  int32_t id;
  bool operator<(const Scored& b) const { return score != b.score ? score > b.score : id < b.id; }
};

class Generator {
 public:
  explicit Generator(const SyntheticRouting& o)
      : o_(o), clusters_((o.codewords + kCodewordsPerCluster - 1) / kCodewordsPerCluster) {}

  RoutingTrace run() {
    RoutingTrace trace;
    trace.synthetic = true;
    trace.experts = o_.experts;
    trace.active = o_.active;
    trace.length = o_.length;
    place_codewords();
    place_experts();
    for (int64_t g = 0; g < o_.codewords; ++g) add_list(g, trace);
    route(trace);
    return trace;
  }

 private:
  RandomStream stream(uint32_t what) const { return {o_.seed, Purpose::test_data, what}; }

  void place_codewords() {
    const RandomStream centres = stream(1), around = stream(2);
    for (int64_t c = 0; c < clusters_; ++c) centre_.push_back(unit(noise(centres, c)));
    // A random rank of popularity, so that clusters differ in weight but none has all the heavy
    // codewords.
    const RandomPermutation popularity(stream(3), static_cast<uint64_t>(o_.codewords));
    for (int64_t g = 0; g < o_.codewords; ++g) {
      codeword_.push_back(near(centre_[g / kCodewordsPerCluster], around, g, o_.spread));
      const double rank = 1 + static_cast<double>(popularity(static_cast<uint64_t>(g)));
      weight_.push_back(std::pow(rank, -o_.zipf));
    }
    cluster_weight_.assign(static_cast<std::size_t>(clusters_), 0.0);
    for (int64_t g = 0; g < o_.codewords; ++g) {
      cluster_weight_[g / kCodewordsPerCluster] += weight_[g];
    }
  }

  // Half of the experts evenly over the clusters, half by popularity; ids say nothing.
  void place_experts() {
    const RandomPermutation shuffle(stream(4), static_cast<uint64_t>(o_.experts));
    const RandomStream around = stream(5);
    const double total = std::accumulate(cluster_weight_.begin(), cluster_weight_.end(), 0.0);
    expert_.resize(static_cast<std::size_t>(o_.experts));
    members_.resize(static_cast<std::size_t>(clusters_));
    double sum = 0;
    int64_t begin = 0;
    for (int64_t c = 0; c < clusters_; ++c) {
      sum += 0.5 / static_cast<double>(clusters_) + 0.5 * cluster_weight_[c] / total;
      const int64_t end = c + 1 == clusters_
                              ? o_.experts
                              : static_cast<int64_t>(sum * static_cast<double>(o_.experts));
      for (int64_t i = begin; i < end; ++i) {
        const auto e = static_cast<int32_t>(shuffle(static_cast<uint64_t>(i)));
        expert_[e] = near(centre_[c], around, e, o_.spread);
        members_[c].push_back(e);
      }
      begin = std::max(begin, end);
    }
  }

  void add_list(int64_t g, RoutingTrace& trace) {
    std::vector<Scored> near_clusters;
    for (int64_t c = 0; c < clusters_; ++c) {
      near_clusters.push_back({dot(codeword_[g], centre_[c]), static_cast<int32_t>(c)});
    }
    std::sort(near_clusters.begin(), near_clusters.end());
    std::vector<Scored> candidates;
    for (const Scored& c : near_clusters) {
      if (std::ssize(candidates) >= 4 * o_.length) break;
      for (const int32_t e : members_[c.id])
        candidates.push_back({dot(codeword_[g], expert_[e]), e});
    }
    std::nth_element(candidates.begin(), candidates.begin() + o_.length - 1, candidates.end());
    std::sort(candidates.begin(), candidates.begin() + o_.length);
    for (int64_t j = 0; j < o_.length; ++j) trace.lists.push_back(candidates[j].id);
  }

  int64_t draw(std::span<const double> cumulative, double at) const {
    const auto it = std::upper_bound(cumulative.begin(), cumulative.end(), at * cumulative.back());
    return std::min<int64_t>(it - cumulative.begin(), std::ssize(cumulative) - 1);
  }

  void route(RoutingTrace& trace) {
    const RandomStream choice = stream(6), around = stream(7);
    std::vector<double> all(weight_.size()), clusters(cluster_weight_.size()), within;
    std::partial_sum(weight_.begin(), weight_.end(), all.begin());
    std::partial_sum(cluster_weight_.begin(), cluster_weight_.end(), clusters.begin());
    std::vector<Scored> scored(static_cast<std::size_t>(o_.length));
    std::vector<int32_t> chosen(static_cast<std::size_t>(o_.active));
    for (int64_t t = 0; t < o_.tokens; ++t) {
      const auto draw_of = [&](int64_t i) { return choice.uniform(static_cast<uint64_t>(i)); };
      int64_t g = draw(all, draw_of(4 * t));
      if (draw_of(4 * t + 1) < 0.5) {  // the sequence's own cluster
        const int64_t c = draw(clusters, draw_of(4 * (t / kSequence * kSequence) + 2));
        const int64_t first = c * kCodewordsPerCluster;
        const int64_t count = std::min(kCodewordsPerCluster, o_.codewords - first);
        within.resize(static_cast<std::size_t>(count));
        std::partial_sum(weight_.begin() + first, weight_.begin() + first + count, within.begin());
        g = first + draw(within, draw_of(4 * t + 3));
      }
      const Point state = near(codeword_[g], around, t, 0.5 * o_.spread);
      for (int64_t j = 0; j < o_.length; ++j) {
        const int32_t e = trace.lists[g * o_.length + j];
        scored[j] = {dot(state, expert_[e]), e};
      }
      std::nth_element(scored.begin(), scored.begin() + o_.active - 1, scored.end());
      for (int64_t k = 0; k < o_.active; ++k) chosen[k] = scored[k].id;
      std::sort(chosen.begin(), chosen.end());
      trace.codeword.push_back(static_cast<int32_t>(g));
      trace.expert.insert(trace.expert.end(), chosen.begin(), chosen.end());
    }
  }

  const SyntheticRouting& o_;
  int64_t clusters_;
  std::vector<Point> centre_, codeword_, expert_;
  std::vector<double> weight_, cluster_weight_;
  std::vector<std::vector<int32_t>> members_;
};

}  // namespace

void SyntheticRouting::validate() const {
  const auto positive = [](const char* name, int64_t value, int64_t most) {
    if (value < 1 || value > most) fail(ExitCode::usage, "{} {}: 1 to {}", name, value, most);
  };
  positive("--experts", experts, int64_t{1} << 28);
  positive("--codewords", codewords, int64_t{1} << 20);
  positive("--tokens", tokens, int64_t{1} << 24);
  positive("--shortlist", length, experts);
  positive("--active", active, std::min<int64_t>(length, 65535));
  if (!(zipf >= 0 && zipf <= 4)) fail(ExitCode::usage, "--zipf {}: 0 to 4", zipf);
  if (!(spread >= 0 && spread <= 100)) fail(ExitCode::usage, "--spread {}: 0 to 100", spread);
}

RoutingTrace make_synthetic(const SyntheticRouting& options) {
  options.validate();
  return Generator(options).run();
}

}  // namespace airmoe::scheduler
