#pragma once
// A small MoE layer with its parameters and tokens, global and in full: the same on every rank.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <vector>

#include "comm/base/random.hpp"
#include "scheduler/model_config.hpp"

namespace airmoe::oracle {

using scheduler::ExpertActivation;
using scheduler::ModelConfig;

/// Row-major arrays. Shapes: hidden, d_out [T, d]; codebook [G, d], unit rows; centroid [E, d];
/// up, down, gate_proj [E * m, d] (gate_proj empty unless swiglu).
template <class T>
struct Arrays {
  std::vector<T> hidden, d_out, codebook, centroid, up, down, gate_proj;
};

struct Problem {
  ModelConfig config;
  int64_t tokens = 0;
  Arrays<float> arrays;
  bool exact = false;  ///< scores are exact in float, ties are meant
};

struct Shape {
  int64_t tokens, dim, experts, active, expert_dim, codewords, shortlist;
  ExpertActivation activation = ExpertActivation::gelu;
  float balance_weight = 1.0f;
};

/// For GoogleTest's messages.
inline void PrintTo(const Shape& s, std::ostream* out) {
  *out << "T " << s.tokens << " d " << s.dim << " E " << s.experts << " K " << s.active << " m "
       << s.expert_dim << " G " << s.codewords << " M " << s.shortlist;
}

/// A codebook that training leaves as it is (decay 1, nothing dies), no jitter.
inline ModelConfig config_of(const Shape& s) {
  ModelConfig c;
  c.dim = s.dim;
  c.experts = s.experts;
  c.active = s.active;
  c.expert_dim = s.expert_dim;
  c.codewords = s.codewords;
  c.shortlist = s.shortlist;
  c.expert_activation = s.activation;
  c.balance_weight = s.balance_weight;
  c.codebook_decay = 1.0f;
  c.dead_threshold = 0.0f;
  c.jitter = 0.0f;
  return c;
}

inline std::vector<float> normal(int64_t count, uint64_t seed, uint32_t which, double stddev) {
  std::vector<float> x(static_cast<std::size_t>(count));
  RandomStream(seed, Purpose::test_data, which)
      .fill_normal(x.data(), count, 0, static_cast<float>(stddev));
  return x;
}

/// Rows scaled to length one in double precision, rounded to float.
inline void normalise_rows(std::vector<float>& x, int64_t dim) {
  for (std::size_t row = 0; row < x.size(); row += dim) {
    double square = 0.0;
    for (int64_t k = 0; k < dim; ++k) square += static_cast<double>(x[row + k]) * x[row + k];
    for (int64_t k = 0; k < dim; ++k) {
      x[row + k] = static_cast<float>(x[row + k] / std::sqrt(square));
    }
  }
}

/// Clustered tokens, some clusters larger than others; centroids of very different lengths.
inline Problem random_problem(const Shape& s, uint64_t seed) {
  Problem p;
  p.config = config_of(s);
  p.tokens = s.tokens;
  Arrays<float>& a = p.arrays;
  a.codebook = normal(s.codewords * s.dim, seed, 1, 1.0);
  a.hidden = normal(s.tokens * s.dim, seed, 2, 0.5);
  const RandomStream cluster(seed, Purpose::test_data, 3);
  for (int64_t t = 0; t < s.tokens; ++t) {
    const double u = cluster.uniform(static_cast<uint64_t>(t));
    const auto g = static_cast<int64_t>(u * u * static_cast<double>(s.codewords));
    for (int64_t k = 0; k < s.dim; ++k) a.hidden[t * s.dim + k] += a.codebook[g * s.dim + k];
  }
  normalise_rows(a.codebook, s.dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.dim));
  const int64_t rows = s.experts * s.expert_dim;
  a.centroid = normal(s.experts * s.dim, seed, 4, 1.0);
  for (int64_t e = 0; e < s.experts; ++e) {
    for (int64_t k = 0; k < s.dim; ++k) {
      a.centroid[e * s.dim + k] *= 0.25f * static_cast<float>(1 + e % 7);
    }
  }
  a.up = normal(rows * s.dim, seed, 5, scale);
  a.down = normal(rows * s.dim, seed, 6, 1.0);
  if (s.activation == ExpertActivation::swiglu) a.gate_proj = normal(rows * s.dim, seed, 7, scale);
  a.d_out = normal(s.tokens * s.dim, seed, 8, 1.0);
  return p;
}

/// Small integers: centroids are plus or minus a coordinate axis times a power of two, codewords
/// are axes, tokens have entries from -2 to 2. Every score is an exact integer, and ties between
/// experts on different ranks, at the end of lists and between codewords are the rule.
inline Problem tied_problem(const Shape& s, uint64_t seed) {
  Problem p = random_problem(s, seed);
  p.exact = true;
  Arrays<float>& a = p.arrays;
  const RandomStream draw(seed, Purpose::test_data, 9);
  for (int64_t i = 0; i < s.tokens * s.dim; ++i) {
    a.hidden[i] =
        static_cast<float>(static_cast<int>(draw.uniform(static_cast<uint64_t>(i)) * 5) - 2);
  }
  std::fill(a.codebook.begin(), a.codebook.end(), 0.0f);
  for (int64_t g = 0; g < s.codewords; ++g) {
    a.codebook[g * s.dim + g % s.dim] = g < s.dim ? 1.0f : -1.0f;
  }
  std::fill(a.centroid.begin(), a.centroid.end(), 0.0f);
  for (int64_t e = 0; e < s.experts; ++e) {
    const float length = static_cast<float>(1 << (e % 3));
    a.centroid[e * s.dim + (e * 5 + e / 3) % s.dim] = e % 4 == 3 ? -length : length;
  }
  return p;
}

}  // namespace airmoe::oracle
