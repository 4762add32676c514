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
using GroupedUnits = std::array<double, 6>;

/// Multiply-adds of scores in tiles, padding included; multiply-adds of pairs in double (sums per
/// token and per row); expert row elements read or changed; those of them beyond the cache.
DenseUnits dense_units(const PathShape& shape);
/// Multiply-adds of pairs, padding included; token row elements read or changed; those of them
/// beyond the cache; expert row elements read or changed; hidden units of pairs; pairs sorted.
GroupedUnits grouped_units(const PathShape& shape);

/// Seconds per unit, forward and backward together, on one core of an Intel Xeon (Sapphire Rapids,
/// AVX-512, 2 MiB second-level cache). Fitted by non-negative least squares of the relative error
/// (apps/bench/fit_cost_model.py) to the 142 shapes of `airmoe-bench expert-paths`, 64 to 4,096
/// tokens, tables of 1 to 64 MiB: rms error 24 % for dense, 21 % for grouped. The choice is right
/// for 87 % of those shapes and costs at most a factor of 1.58, 1.9 % in the mean (always grouped:
/// 13 %, always dense: 45 %). Measured on a machine busy with other work. Only ratios matter for
/// the choice. Fit again after changing a kernel.
inline constexpr DenseUnits kDenseSeconds = {1.56e-11, 1.23e-10, 3.62e-10, 0.0};
inline constexpr GroupedUnits kGroupedSeconds = {4.20e-11, 1.10e-10, 3.14e-10,
                                                 3.96e-10, 1.90e-09, 1.03e-07};

/// Predicted seconds of forward and backward.
double dense_seconds(const PathShape& shape);
double grouped_seconds(const PathShape& shape);

/// `wanted`, or the path with the smaller prediction when automatic (dense when equal).
Path choose_path(Path wanted, const PathShape& shape);

}  // namespace airmoe::experts
