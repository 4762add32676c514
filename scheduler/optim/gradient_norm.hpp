#pragma once
// Pieces of the global gradient norm, and clipping as a factor.

#include "scheduler/parameter.hpp"

namespace airmoe::scheduler {

/// Sum of squared gradients held here, in double, parameters and elements in order (deterministic).
/// Local: add the results of all ranks for the global norm squared, with count_replicated on
/// exactly one rank, because replicated gradients are equal everywhere after their all-reduce.
double local_sum_of_squares(const ParameterSet& parameters, bool count_replicated);

/// Factor that brings a norm down to `clip`: min(1, clip / norm). clip <= 0 means no clipping. The
/// norm must be finite: check it before the update.
double clip_factor(double norm, double clip);

}  // namespace airmoe::scheduler
