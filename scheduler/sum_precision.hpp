#pragma once

#include <cstdint>

namespace airmoe::scheduler {

/// Precision of what is summed over ranks: experts' contributions to a token, gradients of
/// replicated parameters. f64: exact sums (comm/base/exact_sum.hpp); a whole run has the same bits
/// on any number of ranks. f32: half the bytes.
enum class SumPrecision : uint8_t { f64, f32 };

}  // namespace airmoe::scheduler
