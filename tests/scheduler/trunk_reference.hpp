#pragma once
// The trunk's forward pass again: double precision, one token at a time, explicit loops, no code of
// the library. Oracle of the trunk tests; its finite differences are the oracle of the gradients.

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "scheduler/model_config.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler::reference {

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;

/// Every parameter by name, flattened.
using Weights = std::map<std::string, Vector>;

/// What stands in place of the FFN of an MoE layer, token by token.
using Slot = std::function<Vector(const Vector&)>;

inline Weights copy_weights(const ParameterSet& parameters) {
  Weights weights;
  for (const auto& p : parameters.all()) {
    weights[p->name] = Vector(p->value.begin(), p->value.end());
  }
  return weights;
}

/// W x for W [out, x.size()].
inline Vector times(const Vector& w, const Vector& x) {
  Vector y(w.size() / x.size(), 0.0);
  for (std::size_t o = 0; o < y.size(); ++o) {
    for (std::size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
  }
  return y;
}

inline Vector rms_norm(const Vector& x, const Vector& gain, double epsilon) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  const double root = std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] / root * gain[i];
  return y;
}

inline Vector layer_norm(const Vector& x, const Vector& gain, const Vector& bias) {
  double mean = 0.0, variance = 0.0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    y[i] = (x[i] - mean) / std::sqrt(variance + 1e-12) * gain[i] + bias[i];
  }
  return y;
}

/// Turns the pairs of every head by position * base^(-pair's index / head_dim).
inline Vector rope(Vector x, int64_t position, int64_t head_dim, double base) {
  for (std::size_t i = 0; i < x.size(); i += 2) {
    const double within = static_cast<double>(static_cast<int64_t>(i) % head_dim);
    const double angle =
        static_cast<double>(position) / std::pow(base, within / static_cast<double>(head_dim));
    const double a = x[i], b = x[i + 1];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
  }
  return x;
}

/// Causal grouped-query attention of one sequence.
inline Rows attention(const Rows& q, const Rows& k, const Rows& v, int64_t heads, int64_t kv_heads,
                      int64_t head_dim) {
  Rows out(q.size(), Vector(q[0].size(), 0.0));
  for (std::size_t t = 0; t < q.size(); ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t from = h * head_dim, kv_from = h * kv_heads / heads * head_dim;
      Vector weight(t + 1);
      double total = 0.0;
      for (std::size_t s = 0; s <= t; ++s) {
        double score = 0.0;
        for (int64_t i = 0; i < head_dim; ++i) score += q[t][from + i] * k[s][kv_from + i];
        weight[s] = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
        total += weight[s];
      }
      for (std::size_t s = 0; s <= t; ++s) {
        for (int64_t i = 0; i < head_dim; ++i) {
          out[t][from + i] += weight[s] / total * v[s][kv_from + i];
        }
      }
    }
  }
  return out;
}

inline void add(Vector& x, const Vector& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

/// Sum of -log p(target) over one sequence.
inline double sequence_loss(const ModelConfig& c, const Weights& w, const int32_t* tokens,
                            const int32_t* targets, const Slot& slot) {
  const auto width = static_cast<std::size_t>(c.dim);
  const Vector& table = w.at("/embedding");
  Rows x;
  for (int64_t t = 0; t < c.context; ++t) {
    const auto row = table.begin() + tokens[t] * c.dim;
    x.emplace_back(row, row + c.dim);
  }
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string path = "/layers/0" + std::to_string(layer);
    Rows q, k, v;
    for (int64_t t = 0; t < c.context; ++t) {
      const Vector h = rms_norm(x[t], w.at(path + "/attention_norm"), c.norm_epsilon);
      q.push_back(rope(times(w.at(path + "/attention/wq"), h), t, c.head_dim(), c.rope_base));
      k.push_back(rope(times(w.at(path + "/attention/wk"), h), t, c.head_dim(), c.rope_base));
      v.push_back(times(w.at(path + "/attention/wv"), h));
    }
    const Rows mixed = attention(q, k, v, c.heads, c.kv_heads, c.head_dim());
    for (int64_t t = 0; t < c.context; ++t) {
      add(x[t], times(w.at(path + "/attention/wo"), mixed[t]));
      const Vector h = rms_norm(x[t], w.at(path + "/ffn_norm"), c.norm_epsilon);
      if (c.is_moe_layer(layer)) {
        add(x[t],
            layer_norm(slot(h), w.at(path + "/moe_norm/gain"), w.at(path + "/moe_norm/bias")));
        continue;
      }
      Vector gate = times(w.at(path + "/ffn/gate"), h);
      const Vector up = times(w.at(path + "/ffn/up"), h);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
      add(x[t], times(w.at(path + "/ffn/down"), gate));
    }
  }
  double loss = 0.0;
  for (int64_t t = 0; t < c.context; ++t) {
    const Vector h = rms_norm(x[t], w.at("/final_norm"), c.norm_epsilon);
    double total = 0.0, at_target = 0.0;
    for (int64_t token = 0; token < c.vocab; ++token) {
      double logit = 0.0;
      for (std::size_t i = 0; i < width; ++i) logit += h[i] * table[token * c.dim + i];
      total += std::exp(logit);
      if (token == targets[t]) at_target = logit;
    }
    loss += std::log(total) - at_target;
  }
  return loss;
}

}  // namespace airmoe::scheduler::reference
