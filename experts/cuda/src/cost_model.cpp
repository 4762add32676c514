#include "experts/cuda/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/cuda/routed.hpp"

namespace airmoe::experts::cuda {
namespace {

double matrices(const PathShape& shape) {
  return shape.gated ? 1.5 : 1;  // products per pass: swiglu has a second one in the forward
}
double steps_of_64(double count) {
  return std::ceil(count / 64);
}

template <class Units>
double dot(const Units& units, const Units& seconds) {
  return std::inner_product(units.begin(), units.end(), seconds.begin(), 0.0);
}

}  // namespace

DeviceDenseUnits device_dense_units(const PathShape& shape) {
  if (shape.tokens <= 0 || shape.candidates <= 0) return {};
  const auto m = static_cast<double>(shape.expert_dim), d = static_cast<double>(shape.dim);
  const double tile_tokens =
      std::clamp(shape.tokens_per_codeword, 1.0, static_cast<double>(airmoe::cuda::kTileTokens));
  // Candidates that at least one token of a tile selects, if tokens select independently.
  const double share = std::clamp(shape.active / shape.candidates, 0.0, 1.0);
  const double used = shape.candidates * (1 - std::pow(1 - share, tile_tokens));
  return {matrices(shape) * shape.tokens / tile_tokens * used * m * d,
          matrices(shape) * shape.tokens * shape.active * m};
}

DeviceGroupedUnits device_grouped_units(const PathShape& shape) {
  const double pairs = shape.tokens * shape.active;
  const auto m = static_cast<double>(shape.expert_dim);
  // Experts that at least one pair touches, if pairs fall on them independently; a block of 64
  // pairs cuts one expert in two.
  const double touched =
      shape.experts > 0 ? shape.experts * (1 - std::exp(-pairs / shape.experts)) : 0;
  const double runs = touched + pairs / 64;
  return {matrices(shape) * runs * steps_of_64(m) * steps_of_64(static_cast<double>(shape.dim)),
          matrices(shape) * pairs * m, matrices(shape) * pairs * static_cast<double>(shape.dim)};
}

double device_dense_seconds(const PathShape& shape) {
  return dot(device_dense_units(shape), kDeviceDenseSeconds);
}
double device_grouped_seconds(const PathShape& shape) {
  return dot(device_grouped_units(shape), kDeviceGroupedSeconds);
}

Path choose_device_path(Path wanted, const PathShape& shape) {
  if (wanted != Path::automatic) return wanted;
  return device_dense_seconds(shape) <= device_grouped_seconds(shape) ? Path::dense : Path::grouped;
}

}  // namespace airmoe::experts::cuda
