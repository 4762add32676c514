#pragma once
// What one core of this machine can do at most, measured: the floors that kernels are held against.

#include <nlohmann/json.hpp>

namespace airmoe::bench {

struct Machine {
  double flops_per_second = 0;  ///< independent fused multiply-adds in registers, two FLOPs each
  double bytes_per_second = 0;  ///< reading memory in order, far more than the caches hold

  /// Seconds below which work of this size cannot come: the larger of its two floors.
  double floor_seconds(double flops, double bytes) const;
};

/// Takes about a second.
Machine measure_machine();

/// Processor, BLAS, instruction set and build type, for the JSON.
nlohmann::json describe_machine(const Machine& machine);

}  // namespace airmoe::bench
