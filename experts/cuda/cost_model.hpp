#pragma once
// Which execution path is faster on a device, predicted from the shape of the work alone, as
// experts/cost_model.hpp does for the host. Only what the paths do differently counts: the products
// of tokens with up rows (forward) and down rows (backward), with the pass over pairs that follows.

#include <array>

#include "experts/cost_model.hpp"

namespace airmoe::experts::cuda {

/// Elements of table rows gathered by tiles; hidden units of pairs.
using DeviceDenseUnits = std::array<double, 2>;
/// Steps of 64 hidden units and 64 columns of one expert with up to 64 of its pairs; hidden units
/// of pairs; elements of token rows gathered.
using DeviceGroupedUnits = std::array<double, 3>;

/// `shape.tokens_per_codeword` is the mean over codewords with tokens.
DeviceDenseUnits device_dense_units(const PathShape& shape);
DeviceGroupedUnits device_grouped_units(const PathShape& shape);

/// Seconds per unit, forward and backward together, on an H100 in bf16: least squares of the
/// relative error over eight shapes of 8,192 clustered tokens (m 1 to 256, K 4 to 512, d 256 and
/// 512), rms error 10 % for dense, 5 % for grouped; the choice is right for all eight. Fit again
/// after changing a kernel.
inline constexpr DeviceDenseUnits kDeviceDenseSeconds = {1.24e-12, 1.96e-11};
inline constexpr DeviceGroupedUnits kDeviceGroupedSeconds = {4.28e-9, 2.45e-11, 1.16e-12};

/// Predicted seconds of forward and backward.
double device_dense_seconds(const PathShape& shape);
double device_grouped_seconds(const PathShape& shape);

/// `wanted`, or the path with the smaller prediction when automatic (dense when equal).
Path choose_device_path(Path wanted, const PathShape& shape);

}  // namespace airmoe::experts::cuda
