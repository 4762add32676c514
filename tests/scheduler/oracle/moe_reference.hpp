#pragma once
// The MoE layer of the paper in plain loops and double precision, in one process. It shares nothing
// with the layer but the jitter draws, which are part of the specification.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "tests/scheduler/oracle/moe_problem.hpp"

namespace airmoe::oracle {

/// Which jitter is drawn: keys as documented in router/shortlist.hpp and comm/base/random.hpp.
struct JitterKey {
  uint64_t seed;
  uint32_t step, micro_batch, layer;
};

using Lists = std::vector<std::vector<int32_t>>;

struct Forward {
  std::vector<int32_t> codeword;    ///< [T]
  Lists lists;                      ///< [G], each M ids by (score descending, id)
  std::vector<int32_t> expert;      ///< [T, K], ascending per token
  std::vector<double> gate;         ///< [T, K]
  std::vector<double> log_sum_exp;  ///< [T], of the selected scores
  std::vector<double> output;       ///< [T, d]
  std::vector<int64_t> selections;  ///< [E]
  double balance_loss = 0.0;
  double loss = 0.0;  ///< sum of output * d_out, plus balance_loss
  /// Smallest difference that decided anything: codewords, ends of lists, ends of the top K.
  double margin = std::numeric_limits<double>::infinity();
};

/// How a sum takes its terms.
enum class Terms { as_they_are, magnitude };

struct Gradients {
  std::vector<double> hidden, centroid, up, down, gate_proj;
};

inline Arrays<double> widen(const Arrays<float>& a) {
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {wide(a.hidden), wide(a.d_out), wide(a.codebook), wide(a.centroid),
          wide(a.up),     wide(a.down),  wide(a.gate_proj)};
}

class Reference {
 public:
  /// @param loss_scale   scales the balance loss; 0 in evaluation
  /// @param list_jitter  of the micro-batch that built the lists
  /// @param score_jitter of the present micro-batch
  Reference(const ModelConfig& config, double loss_scale,
            std::optional<JitterKey> list_jitter = std::nullopt,
            std::optional<JitterKey> score_jitter = std::nullopt)
      : c_(config),
        loss_scale_(loss_scale),
        list_jitter_(list_jitter),
        score_jitter_(score_jitter) {}

  /// @param margin  lowered to the smallest difference at the end of a list
  Lists lists(const Arrays<double>& a, double& margin) const {
    const std::vector<double> unit = unit_rows(a.centroid);
    Lists all;
    for (int64_t g = 0; g < c_.codewords; ++g) all.push_back(list_of(g, a, unit, margin));
    return all;
  }

  Forward forward(const Arrays<double>& a) const {
    double margin = std::numeric_limits<double>::infinity();
    const Lists made = lists(a, margin);
    Forward f = forward(a, made);
    f.margin = std::min(f.margin, margin);
    return f;
  }

  /// With given lists.
  Forward forward(const Arrays<double>& a, const Lists& given) const {
    const int64_t tokens = std::ssize(a.hidden) / c_.dim;
    Forward f;
    f.selections.assign(c_.experts, 0);
    f.output.assign(tokens * c_.dim, 0.0);
    const std::vector<double> unit = unit_rows(a.centroid);
    f.lists = given;
    for (int64_t t = 0; t < tokens; ++t) {
      const double* h = &a.hidden[t * c_.dim];
      const int32_t g = codeword_of(h, a, f.margin);
      f.codeword.push_back(g);
      std::vector<double> score;
      for (const int32_t e : f.lists[g]) {
        score.push_back(dot(h, &unit[e * c_.dim]) +
                        draw(score_jitter_, Purpose::jitter_score, t, static_cast<uint32_t>(e), g));
      }
      std::vector<int32_t> top = best(score, f.lists[g], c_.active, f.margin);
      std::sort(top.begin(), top.end(),
                [&](int32_t x, int32_t y) { return f.lists[g][x] < f.lists[g][y]; });
      double sum = 0.0;
      for (const int32_t i : top) sum += std::exp(score[i]);
      f.log_sum_exp.push_back(std::log(sum));
      for (const int32_t i : top) {
        const int32_t e = f.lists[g][i];
        const double gate = std::exp(score[i]) / sum;
        f.expert.push_back(e);
        f.gate.push_back(gate);
        ++f.selections[e];
        const std::vector<double> y = expert_output(e, h, a);
        for (int64_t k = 0; k < c_.dim; ++k) f.output[t * c_.dim + k] += gate * y[k];
      }
    }
    for (std::size_t i = 0; i < f.expert.size(); ++i) {
      f.balance_loss += balance_slope(f, f.expert[i]) * f.gate[i];
    }
    f.loss = f.balance_loss;
    if (!a.d_out.empty())
      f.loss += std::inner_product(f.output.begin(), f.output.end(), a.d_out.begin(), 0.0);
    return f;
  }

  /// With Terms::magnitude, sums of the terms' absolute values instead: what relative errors of the
  /// terms multiply.
  template <Terms kTerms = Terms::as_they_are>
  Gradients backward(const Arrays<double>& a, const Forward& f) const {
    Gradients d{std::vector<double>(a.hidden.size()), std::vector<double>(a.centroid.size()),
                std::vector<double>(a.up.size()), std::vector<double>(a.down.size()),
                std::vector<double>(a.gate_proj.size())};
    const std::vector<double> unit = unit_rows(a.centroid);
    std::vector<double> d_unit(a.centroid.size());
    const int64_t active = c_.active;
    for (int64_t t = 0; t < std::ssize(f.codeword); ++t) {
      const double* h = &a.hidden[t * c_.dim];
      const double* d_y = &a.d_out[t * c_.dim];
      double* d_h = &d.hidden[t * c_.dim];
      std::vector<double> d_gate(active);
      for (int64_t i = 0; i < active; ++i) {
        const int32_t e = f.expert[t * active + i];
        d_gate[i] = dot(d_y, expert_output(e, h, a).data()) + balance_slope(f, e);
        expert_backward<kTerms>(e, f.gate[t * active + i], h, d_y, a, d_h, d);
      }
      for (int64_t i = 0; i < active; ++i) {  // the whole Jacobian of the softmax
        double d_score = 0.0;
        for (int64_t j = 0; j < active; ++j) {
          add<kTerms>(d_score, d_gate[j] * f.gate[t * active + j] *
                                   ((i == j ? 1.0 : 0.0) - f.gate[t * active + i]));
        }
        const int64_t row = f.expert[t * active + i] * c_.dim;
        for (int64_t k = 0; k < c_.dim; ++k) {
          add<kTerms>(d_h[k], d_score * unit[row + k]);
          add<kTerms>(d_unit[row + k], d_score * h[k]);
        }
      }
    }
    for (int64_t e = 0; e < c_.experts; ++e) {  // through w / |w|
      const double* w = &a.centroid[e * c_.dim];
      const double square = dot(w, w);
      double along = 0.0;
      for (int64_t k = 0; k < c_.dim; ++k) add<kTerms>(along, d_unit[e * c_.dim + k] * w[k]);
      for (int64_t k = 0; k < c_.dim; ++k) {
        double& d_w = d.centroid[e * c_.dim + k];
        add<kTerms>(d_w, d_unit[e * c_.dim + k]);
        add<kTerms>(d_w, -along / square * w[k]);
        d_w /= std::sqrt(square);
      }
    }
    return d;
  }

  /// Sums of the absolute values of what the outputs are sums of. Shape: [T, d]
  std::vector<double> output_magnitude(const Arrays<double>& a, const Forward& f) const {
    std::vector<double> sum(f.output.size());
    for (std::size_t i = 0; i < f.expert.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / c_.active * c_.dim;
      const auto y = expert_output<Terms::magnitude>(f.expert[i], &a.hidden[row], a);
      for (int64_t k = 0; k < c_.dim; ++k) sum[row + k] += f.gate[i] * y[k];
    }
    return sum;
  }

  /// Unit rows of a [n, d] array.
  std::vector<double> unit_rows(const std::vector<double>& x) const {
    std::vector<double> unit(x.size());
    for (std::size_t row = 0; row < x.size(); row += c_.dim) {
      const double length = std::sqrt(dot(&x[row], &x[row]));
      for (int64_t k = 0; k < c_.dim; ++k) unit[row + k] = x[row + k] / length;
    }
    return unit;
  }

 private:
  double dot(const double* x, const double* y) const {
    return std::inner_product(x, x + c_.dim, y, 0.0);
  }

  // Places of the `count` largest, by (score descending, id ascending).
  static std::vector<int32_t> best(const std::vector<double>& score, const std::vector<int32_t>& id,
                                   int64_t count, double& margin) {
    std::vector<int32_t> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
      return score[x] != score[y] ? score[x] > score[y] : id[x] < id[y];
    });
    if (count < std::ssize(order)) {
      margin = std::min(margin, score[order[count - 1]] - score[order[count]]);
    }
    order.resize(count);
    return order;
  }

  double draw(const std::optional<JitterKey>& jitter, Purpose purpose, int64_t id, uint32_t b,
              int64_t c) const {
    if (!jitter) return 0.0;
    const RandomStream stream(jitter->seed, purpose, jitter->step, jitter->micro_batch,
                              jitter->layer);
    const auto key = static_cast<int32_t>(id);
    float x = 0.0f;
    add_jitter(&x, &key, 1, c_.jitter, stream, b, static_cast<uint32_t>(c));
    return x;
  }

  std::vector<int32_t> list_of(int64_t g, const Arrays<double>& a, const std::vector<double>& unit,
                               double& margin) const {
    std::vector<double> score;
    std::vector<int32_t> ids(c_.experts);
    std::iota(ids.begin(), ids.end(), 0);
    for (int64_t e = 0; e < c_.experts; ++e) {
      score.push_back(
          dot(&a.codebook[g * c_.dim], &unit[e * c_.dim]) +
          draw(list_jitter_, Purpose::jitter_shortlist, e, static_cast<uint32_t>(g), 0));
    }
    return best(score, ids, c_.shortlist, margin);
  }

  // The largest cosine; |h| and |c| = 1 do not change which it is.
  int32_t codeword_of(const double* h, const Arrays<double>& a, double& margin) const {
    std::vector<double> score;
    std::vector<int32_t> ids(c_.codewords);
    std::iota(ids.begin(), ids.end(), 0);
    for (int64_t g = 0; g < c_.codewords; ++g) score.push_back(dot(h, &a.codebook[g * c_.dim]));
    return best(score, ids, 1, margin)[0];
  }

  // What one more unit of gate of expert e costs; f_e is not differentiated. P_e is the mean gate
  // over the micro-batch, whose weight in the step's loss is tokens * loss_scale.
  double balance_slope(const Forward& f, int32_t e) const {
    const auto tokens = static_cast<double>(f.codeword.size());
    const double share =
        static_cast<double>(f.selections[e]) / (tokens * static_cast<double>(c_.active));
    return loss_scale_ * static_cast<double>(c_.balance_weight) * static_cast<double>(c_.experts) *
           share;
  }

  double activation(double x) const {
    switch (c_.expert_activation) {
      case ExpertActivation::gelu:
        return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
      case ExpertActivation::relu:
        return x > 0.0 ? x : 0.0;
      case ExpertActivation::silu:
      case ExpertActivation::swiglu:
        return x / (1.0 + std::exp(-x));
    }
    return 0.0;
  }

  double slope(double x) const {
    if (c_.expert_activation == ExpertActivation::gelu) {
      return 0.5 * (1.0 + std::erf(x / std::sqrt(2.0))) +
             x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * 3.14159265358979323846);
    }
    if (c_.expert_activation == ExpertActivation::relu) return x > 0.0 ? 1.0 : 0.0;
    const double s = 1.0 / (1.0 + std::exp(-x));
    return s + x * s * (1.0 - s);
  }

  bool gated() const { return c_.expert_activation == ExpertActivation::swiglu; }

  template <Terms kTerms>
  static void add(double& to, double term) {
    to += kTerms == Terms::magnitude ? std::abs(term) : term;
  }

  template <Terms kTerms = Terms::as_they_are>
  std::vector<double> expert_output(int64_t e, const double* h, const Arrays<double>& a) const {
    std::vector<double> y(c_.dim, 0.0);
    for (int64_t j = e * c_.expert_dim; j < (e + 1) * c_.expert_dim; ++j) {
      const double linear = dot(h, &a.up[j * c_.dim]);
      const double unit =
          gated() ? activation(dot(h, &a.gate_proj[j * c_.dim])) * linear : activation(linear);
      for (int64_t k = 0; k < c_.dim; ++k) add<kTerms>(y[k], unit * a.down[j * c_.dim + k]);
    }
    return y;
  }

  template <Terms kTerms>
  void expert_backward(int64_t e, double gate, const double* h, const double* d_y,
                       const Arrays<double>& a, double* d_h, Gradients& d) const {
    for (int64_t j = e * c_.expert_dim; j < (e + 1) * c_.expert_dim; ++j) {
      const int64_t row = j * c_.dim;
      const double linear = dot(h, &a.up[row]);
      const double inner = gated() ? dot(h, &a.gate_proj[row]) : 0.0;
      const double unit = gated() ? activation(inner) * linear : activation(linear);
      const double d_unit = gate * dot(d_y, &a.down[row]);
      const double d_linear = d_unit * (gated() ? activation(inner) : slope(linear));
      const double d_inner = gated() ? d_unit * linear * slope(inner) : 0.0;
      for (int64_t k = 0; k < c_.dim; ++k) {
        add<kTerms>(d.down[row + k], gate * unit * d_y[k]);
        add<kTerms>(d.up[row + k], d_linear * h[k]);
        add<kTerms>(d_h[k], d_linear * a.up[row + k]);
        if (!gated()) continue;
        add<kTerms>(d.gate_proj[row + k], d_inner * h[k]);
        add<kTerms>(d_h[k], d_inner * a.gate_proj[row + k]);
      }
    }
  }

  ModelConfig c_;
  double loss_scale_;
  std::optional<JitterKey> list_jitter_, score_jitter_;
};

}  // namespace airmoe::oracle
