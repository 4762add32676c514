#pragma once
// Which execution path is faster, predicted from the shape of the work. The prediction is a pure
// function of its arguments, so a plan, and with it every bit of a run, does not depend on timing.

#include <array>
#include <cstdint>

namespace airmoe::experts {

/// automatic: choose_path() decides.
enum class Path : uint8_t { automatic, dense, grouped };

/// One rank's work in one MoE layer and micro-batch.
struct PathShape {
  double tokens = 0;               ///< that came to this rank
  double tokens_per_codeword = 0;  ///< mean over codewords with at least one token here
  double candidates = 0;           ///< resident candidates per codeword
  double active = 0;               ///< selected pairs per token on this rank, <= candidates
  double experts = 0;              ///< experts on this rank that some token could select
  int64_t expert_dim = 1;          ///< m
  int64_t dim = 0;                 ///< d
  bool gated = false;              ///< swiglu: three matrices instead of two
};

/// Work of a path in units that its constants give seconds for.
using DenseUnits = std::array<double, 4>;
using GroupedUnits = std::array<double, 5>;

/// multiply-adds in tiles, padding included; expert row elements read; hidden units of pairs; tile
/// elements cleared and candidates listed.
DenseUnits dense_units(const PathShape& shape);
/// multiply-adds of pairs; token row elements read or changed; expert row elements read or changed;
/// hidden units of pairs; pairs sorted.
GroupedUnits grouped_units(const PathShape& shape);

/// Seconds per unit, forward and backward together, on one core of an Intel Xeon (Sapphire Rapids,
/// AVX-512). Fitted by non-negative least squares of the relative error (apps/bench/
/// fit_cost_model.py) to the 108 shapes of `airmoe-bench expert-paths`: rms error 16 % for both
/// paths. The choice was right for 89 % of those shapes and cost at most a factor of 1.32, 2 % in
/// the mean (always grouped: 5 %, always dense: 72 %). Only ratios matter for it. Zero: too small
/// beside the others to be seen. Fit again after changing a kernel.
inline constexpr DenseUnits kDenseSeconds = {1.50e-11, 1.95e-10, 1.44e-08, 0.00e+00};
inline constexpr GroupedUnits kGroupedSeconds = {3.07e-11, 2.24e-11, 3.92e-10, 6.41e-09, 3.04e-08};

/// Predicted seconds of forward and backward.
double dense_seconds(const PathShape& shape);
double grouped_seconds(const PathShape& shape);

/// `wanted`, or the path with the smaller prediction when automatic (dense when equal).
Path choose_path(Path wanted, const PathShape& shape);

}  // namespace airmoe::experts
