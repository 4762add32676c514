#include "experts/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/panel.hpp"
#include "experts/src/unit_layout.hpp"

namespace airmoe::experts {
namespace {

constexpr double kBlockTokens = 64;  // callers of the dense path split codewords into such blocks

/// Matrix products of forward and backward together.
double products(const PathShape& shape) {
  return shape.gated ? 9 : 6;
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
  return {products(shape) * blocks * rows * d * lanes, products(shape) * blocks * rows * d,
          shape.tokens * shape.active * m, blocks * (shape.candidates + rows * lanes)};
}

GroupedUnits grouped_units(const PathShape& shape) {
  const auto d = static_cast<double>(shape.dim);
  const double pairs = shape.tokens * shape.active;
  const auto units = static_cast<double>(unit_stride(shape.expert_dim));
  // Experts that at least one pair touches, if pairs fall on them independently.
  const double touched =
      shape.experts > 0 ? shape.experts * (1 - std::exp(-pairs / shape.experts)) : 0;
  return {products(shape) * pairs * units * d, products(shape) * pairs * d,
          products(shape) * touched * static_cast<double>(shape.expert_dim) * d, pairs * units,
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
