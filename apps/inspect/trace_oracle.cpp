#include "apps/inspect/trace_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "comm/base/random.hpp"

namespace airmoe::inspect {

namespace {

// fp32 sums of d products are off by about sqrt(d) * 6e-8 of the product of the norms; this is 10
// times that for d = 256 and still far below what a wrong codeword, expert or gate would cause.
constexpr double kRelativeTolerance = 1e-5;

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

std::vector<double> row_norms(const std::vector<float>& rows, int64_t count, int64_t dim) {
  std::vector<double> norms(static_cast<std::size_t>(count));
  for (int64_t r = 0; r < count; ++r) {
    const float* row = rows.data() + r * dim;
    norms[static_cast<std::size_t>(r)] = std::max(1e-30, std::sqrt(dot(row, row, dim)));
  }
  return norms;
}

double activate(const std::string& f, double x) {
  if (f == "relu") return std::max(x, 0.0);
  if (f == "gelu") return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2));
  return x / (1 + std::exp(-x));  // silu, and the gate of swiglu
}

class Oracle {
 public:
  explicit Oracle(const TraceArrays& trace)
      : t_(trace),
        codeword_norm_(row_norms(trace.codebook, trace.codewords, trace.dim)),
        centroid_norm_(row_norms(trace.centroid, trace.experts, trace.dim)) {}

  void compare(int64_t token, TraceErrors& errors) {
    const int64_t before =
        errors.bad_codewords + errors.bad_selections + errors.bad_gates + errors.bad_outputs;
    h_ = t_.hidden.data() + token * t_.dim;
    norm_ = std::sqrt(dot(h_, h_, t_.dim));
    compare_codeword(token, errors);
    if (compare_selection(token, errors)) {
      compare_gates(token, errors);
      compare_output(token, errors);
    }
    const int64_t after =
        errors.bad_codewords + errors.bad_selections + errors.bad_gates + errors.bad_outputs;
    if (after > before && errors.first_bad_token < 0) errors.first_bad_token = token;
  }

 private:
  double cosine(int64_t g) const {
    return dot(h_, t_.codebook.data() + g * t_.dim, t_.dim) /
           (codeword_norm_[static_cast<std::size_t>(g)] * std::max(norm_, 1e-30));
  }
  double score(int64_t e) const {
    return dot(h_, t_.centroid.data() + e * t_.dim, t_.dim) /
           centroid_norm_[static_cast<std::size_t>(e)];
  }

  void compare_codeword(int64_t token, TraceErrors& errors) {
    const int64_t stored = t_.codeword[static_cast<std::size_t>(token)];
    if (stored < 0 || stored >= t_.codewords) {
      ++errors.bad_codewords;
      return;
    }
    double best = -2;
    for (int64_t g = 0; g < t_.codewords; ++g) best = std::max(best, cosine(g));
    const double gap = best - cosine(stored);
    errors.codeword_gap = std::max(errors.codeword_gap, gap);
    if (gap > kRelativeTolerance) ++errors.bad_codewords;
  }

  // False when the stored ids are no K distinct candidates, so that nothing else can be compared.
  bool compare_selection(int64_t token, TraceErrors& errors) {
    const int64_t g = t_.codeword[static_cast<std::size_t>(token)];
    if (g < 0 || g >= t_.codewords) return false;
    const int32_t* ids = t_.expert.data() + token * t_.active;
    const int32_t* list = t_.shortlist.data() + g * t_.list_length;
    const std::set<int32_t> selected(ids, ids + t_.active);
    double worst_taken = INFINITY;
    double best_left = -INFINITY;
    int64_t found = 0;
    for (int64_t i = 0; i < t_.list_length; ++i) {
      if (list[i] < 0 || list[i] >= t_.experts) continue;
      const double z = score(list[i]);
      if (selected.contains(list[i])) {
        ++found;
        worst_taken = std::min(worst_taken, z);
      } else {
        best_left = std::max(best_left, z);
      }
    }
    if (std::ssize(selected) != t_.active || found != t_.active) {
      ++errors.bad_selections;
      return false;
    }
    const double gap = std::max(0.0, best_left - worst_taken);
    errors.score_gap = std::max(errors.score_gap, gap);
    if (gap > kRelativeTolerance * norm_ + noise_gap()) ++errors.bad_selections;
    return true;
  }

  // Most that jitter can change the difference of two scores.
  double noise_gap() const { return 2 * static_cast<double>(kJitterBound) * t_.jitter; }

  void compare_gates(int64_t token, TraceErrors& errors) {
    const auto begin = static_cast<std::size_t>(token * t_.active);
    std::vector<double> weight(static_cast<std::size_t>(t_.active));
    double largest = -INFINITY;
    for (std::size_t k = 0; k < weight.size(); ++k) {
      weight[k] = score(t_.expert[begin + k]);
      largest = std::max(largest, weight[k]);
    }
    double sum = 0;
    for (double& w : weight) sum += w = std::exp(w - largest);
    bool bad = false;
    for (std::size_t k = 0; k < weight.size(); ++k) {
      const double expected = weight[k] / sum;
      const double error = std::abs(expected - static_cast<double>(t_.gate[begin + k]));
      errors.gate_error = std::max(errors.gate_error, error);
      bad |= !(error <= expected * std::expm1(noise_gap() + kRelativeTolerance * norm_) + 1e-6);
    }
    errors.bad_gates += bad ? 1 : 0;
  }

  // With the stored experts and gates, so that jitter does not matter.
  void compare_output(int64_t token, TraceErrors& errors) {
    const auto dim = static_cast<std::size_t>(t_.dim);
    std::vector<double> sum(dim, 0.0);
    std::vector<double> size(dim, 0.0);
    for (int64_t k = 0; k < t_.active; ++k) {
      const auto at = static_cast<std::size_t>(token * t_.active + k);
      for (int64_t j = 0; j < t_.width; ++j) {
        const int64_t row = (t_.expert[at] * t_.width + j) * t_.dim;
        double unit = dot(h_, t_.up.data() + row, t_.dim);
        if (t_.activation == "swiglu") {
          unit *= activate("silu", dot(h_, t_.gate_proj.data() + row, t_.dim));
        } else {
          unit = activate(t_.activation, unit);
        }
        unit *= static_cast<double>(t_.gate[at]);
        for (std::size_t i = 0; i < dim; ++i) {
          const double term =
              unit * static_cast<double>(t_.down[static_cast<std::size_t>(row) + i]);
          sum[i] += term;
          size[i] += std::abs(term);
        }
      }
    }
    const double allowed =
        10 * kRelativeTolerance * *std::max_element(size.begin(), size.end()) + 1e-9;
    bool bad = false;
    for (std::size_t i = 0; i < dim; ++i) {
      const auto stored =
          static_cast<double>(t_.output[static_cast<std::size_t>(token * t_.dim) + i]);
      const double error = std::abs(stored - sum[i]);
      errors.output_error = std::max(errors.output_error, error);
      errors.output_size = std::max(errors.output_size, std::abs(stored));
      bad |= !(error <= allowed);
    }
    errors.bad_outputs += bad ? 1 : 0;
  }

  const TraceArrays& t_;
  std::vector<double> codeword_norm_, centroid_norm_;
  const float* h_ = nullptr;
  double norm_ = 0;
};

}  // namespace

TraceErrors compare_with_oracle(const TraceArrays& trace) {
  TraceErrors errors;
  Oracle oracle(trace);
  for (int64_t token = 0; token < trace.tokens; ++token) oracle.compare(token, errors);
  return errors;
}

}  // namespace airmoe::inspect
