#include "router/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "comm/base/error.hpp"

namespace airmoe::router {
namespace {
constexpr double kLogZero = -std::numeric_limits<double>::infinity();
}  // namespace

double log_sum_exp(std::span<const float> z) {
  if (z.empty()) return kLogZero;
  const double max = *std::max_element(z.begin(), z.end());
  if (std::isinf(max)) return max;
  double sum = 0.0;
  for (const float value : z) sum += std::exp(value - max);
  return max + std::log(sum);
}

double log_add_exp(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return std::isinf(high) ? high : high + std::log1p(std::exp(low - high));
}

double log_subtract_exp(double a, double b) {
  if (a <= b) return kLogZero;
  return std::isinf(a) ? a : a + std::log(-std::expm1(b - a));
}

double overlap(std::span<const int32_t> selected, std::span<const int32_t> exact) {
  if (exact.empty()) return 1.0;
  std::vector<int32_t> a(selected.begin(), selected.end()), b(exact.begin(), exact.end());
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  std::vector<int32_t> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return static_cast<double>(both.size()) / static_cast<double>(exact.size());
}

double top_k_mass_ratio(std::span<const float> selected_score, std::span<const float> exact_score) {
  if (exact_score.empty()) return 1.0;
  return std::exp(log_sum_exp(selected_score) - log_sum_exp(exact_score));
}

double mass_recall(double log_candidates, double log_all) {
  return std::exp(log_candidates - log_all);
}

CodewordDistance codeword_distance(std::span<const float> hidden, std::span<const float> codeword) {
  AIRMOE_CHECK(hidden.size() == codeword.size(), "codeword_distance: {} and {} columns",
               hidden.size(), codeword.size());
  double alpha = 0.0;
  for (std::size_t k = 0; k < hidden.size(); ++k) {
    alpha += static_cast<double>(hidden[k]) * static_cast<double>(codeword[k]);
  }
  double squares = 0.0;
  for (std::size_t k = 0; k < hidden.size(); ++k) {
    const double beside = hidden[k] - alpha * codeword[k];
    squares += beside * beside;
  }
  return {alpha, std::sqrt(squares)};
}

double mass_recall_bound(double log_candidates, double log_outside, double eps) {
  if (log_outside == kLogZero) return 1.0;
  return 1.0 / (1.0 + std::exp(eps + log_outside - log_candidates));
}

Usage usage_of(std::span<const int64_t> selections) {
  Usage usage;
  usage.members = static_cast<double>(selections.size());
  for (const int64_t n : selections) {
    const double count = static_cast<double>(n);
    usage.dead += n == 0;
    usage.total += count;
    if (n > 0) usage.n_log_n += count * std::log(count);
    usage.largest = std::max(usage.largest, count);
  }
  return usage;
}

Usage combine(const Usage& a, const Usage& b) {
  return {a.members + b.members, a.dead + b.dead, a.total + b.total, a.n_log_n + b.n_log_n,
          std::max(a.largest, b.largest)};
}

double dead_fraction(const Usage& usage) {
  return usage.members > 0 ? usage.dead / usage.members : 0.0;
}

double entropy_fraction(const Usage& usage) {
  if (usage.total <= 0) return 0.0;
  const double entropy = std::log(usage.total) - usage.n_log_n / usage.total;
  return std::exp(entropy) / usage.members;
}

double max_violation(const Usage& usage) {
  return usage.total > 0 ? usage.largest * usage.members / usage.total - 1.0 : 0.0;
}

}  // namespace airmoe::router
