#include "experts/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/panel.hpp"
#include "experts/src/unit_layout.hpp"

namespace airmoe::experts {
namespace {

constexpr double kBlockTokens = 64;  // callers of the dense path split codewords into such blocks
constexpr double kCacheBytes = 2 << 20;  // second-level cache of a core

/// Matrices of an expert. Forward and backward together take each one three times: for scores, for
/// a sum over pairs, and for its gradient.
double matrices(const PathShape& shape) {
  return shape.gated ? 3 : 2;
}

/// Share of accesses that miss a cache, if they fall evenly on `bytes`.
double missing_share(double bytes) {
  return bytes > kCacheBytes ? 1 - kCacheBytes / bytes : 0;
}

template <class Units>
double dot(const Units& units, const Units& seconds) {
  return std::inner_product(units.begin(), units.end(), seconds.begin(), 0.0);
}

}  // namespace

DenseUnits dense_units(const PathShape& shape) {
  if (shape.tokens <= 0 || shape.candidates <= 0) return {};
  const auto m = static_cast<double>(shape.expert_dim), d = static_cast<double>(shape.dim);
  const double block = std::clamp(shape.tokens_per_codeword, 1.0, kBlockTokens);
  const double blocks = shape.tokens / block;
  const auto lanes = static_cast<double>(tile_ld(static_cast<int64_t>(std::ceil(block))));
  // Candidates that at least one token of the block selects, if tokens select independently.
  const double share = std::clamp(shape.active / shape.candidates, 0.0, 1.0);
  const double rows = shape.candidates * (1 - std::pow(1 - share, block)) * m;
  // Gradients are in double: two floats.
  const double row_elements = 4 * matrices(shape) * blocks * rows * d;
  // Another codeword follows with other rows of the tables and of their gradients.
  const double tables = 3 * matrices(shape) * shape.experts * m * d * sizeof(float);
  return {matrices(shape) * blocks * rows * d * lanes,
          2 * matrices(shape) * shape.tokens * shape.active * m * d, row_elements,
          row_elements * missing_share(tables)};
}

GroupedUnits grouped_units(const PathShape& shape) {
  const auto d = static_cast<double>(shape.dim);
  const double pairs = shape.tokens * shape.active;
  const auto units = static_cast<double>(unit_stride(shape.expert_dim));
  // Experts that at least one pair touches, if pairs fall on them independently.
  const double touched =
      shape.experts > 0 ? shape.experts * (1 - std::exp(-pairs / shape.experts)) : 0;
  const double token_elements = 3 * matrices(shape) * pairs * d;
  // Backward reads the token and its output gradient in float and adds to its gradient in double.
  const double tokens = shape.tokens * d * (2 * sizeof(float) + sizeof(double));
  return {token_elements * units,
          token_elements,
          token_elements * missing_share(tokens),
          4 * matrices(shape) * touched * static_cast<double>(shape.expert_dim) * d,
          pairs * units,
          pairs};
}

double dense_seconds(const PathShape& shape) {
  return dot(dense_units(shape), kDenseSeconds);
}
double grouped_seconds(const PathShape& shape) {
  return dot(grouped_units(shape), kGroupedSeconds);
}

Path choose_path(Path wanted, const PathShape& shape) {
  if (wanted != Path::automatic) return wanted;
  return dense_seconds(shape) <= grouped_seconds(shape) ? Path::dense : Path::grouped;
}

}  // namespace airmoe::experts
