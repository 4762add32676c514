#pragma once
// What a router is judged by (shared words: docs/glossary.md). Pure functions on arrays, in double
// precision; sums of exponentials stay in log space, so scores of any size are fine. All local; for
// several ranks, combine logs with log_add_exp and usages with combine.

#include <cstdint>
#include <span>

namespace airmoe::router {

// ---------------------------------------------------------------------------- one token

/// log sum_i exp(z_i); minus infinity for an empty array.
double log_sum_exp(std::span<const float> z);
/// log(exp(a) + exp(b)).
double log_add_exp(double a, double b);
/// log(exp(a) - exp(b)) for a >= b; minus infinity where a <= b (also when only rounding says so).
double log_subtract_exp(double a, double b);

/// overlap@K = |selected and exact| / |exact|; 1 for an empty exact set. Ids distinct, any order.
double overlap(std::span<const int32_t> selected, std::span<const int32_t> exact);

/// sum of exp(z) over the selected / sum of exp(z) over the exact top K: the share of the best
/// possible softmax mass that the selected have. 1 when they are the same.
double top_k_mass_ratio(std::span<const float> selected_score, std::span<const float> exact_score);

/// MassRecall(h) = sum over e in L of pi_e(h) = exp(log_candidates - log_all), where
/// log_candidates = log sum over the shortlist of exp(z_e), log_all = the same over all experts.
double mass_recall(double log_candidates, double log_all);

/// The token along and beside its codeword c (a unit vector): alpha = <h, c>, eps = |h - alpha c|.
struct CodewordDistance {
  double alpha;
  double eps;
};
CodewordDistance codeword_distance(std::span<const float> hidden, std::span<const float> codeword);

/// Lower bound of MassRecall(h), exact-numerator form: A / (A + exp(eps) Z_out), where
/// A = sum over the shortlist of exp(<h, w_e>) = exp(log_candidates),
/// Z_out = sum over all other experts of exp(alpha <c, w_e>) = exp(log_outside), |w_e| <= 1.
/// It holds because <h, w_e> <= alpha <c, w_e> + eps for every expert outside the list.
double mass_recall_bound(double log_candidates, double log_outside, double eps);

// ---------------------------------------------------------------------------- usage over a window

/// Sums over a set of experts (or codewords, or ranks), enough for every usage metric; add the
/// fields of disjoint sets, take the larger `largest`, to get those of the union.
struct Usage {
  double members = 0;  ///< E
  double dead = 0;     ///< members with no selection
  double total = 0;    ///< N = sum of n_e
  double n_log_n = 0;  ///< sum of n_e log n_e
  double largest = 0;  ///< max n_e
};
Usage usage_of(std::span<const int64_t> selections);
Usage combine(const Usage& a, const Usage& b);

/// Members never selected / E; 0 for an empty set.
double dead_fraction(const Usage& usage);
/// exp(entropy of n_e / N) / E in (0, 1]: 1 when all are used alike. 0 when N = 0.
double entropy_fraction(const Usage& usage);
/// MaxVio = max n_e / mean n_e - 1: 0 when all are used alike. 0 when N = 0.
double max_violation(const Usage& usage);

}  // namespace airmoe::router
