#pragma once

#include <cstdint>

namespace airmoe::scheduler {

/// Precision of what is summed over ranks: experts' contributions to a token, gradients of
/// replicated parameters. f64: the sums, and with them a whole run, do not depend on the rank
/// count, but for about one element in 10^7 by its last bit. f32: half the bytes.
enum class SumPrecision : uint8_t { f64, f32 };

}  // namespace airmoe::scheduler
