#pragma once
// Scratch that both execution paths share.

#include "comm/base/buffer.hpp"

namespace airmoe::experts {

/// Compact arrays over pairs and their hidden units; each grows to the largest block seen.
/// linear: <h, u>; inner: <h, g> (swiglu only); unit: what multiplies the down row;
/// slope_*: d unit / d linear and d unit / d inner; d_unit: gradient of unit before the gate.
struct PairBuffers {
  Buffer<float> linear, inner, unit, slope_linear, slope_inner, d_unit;
};

}  // namespace airmoe::experts
