#pragma once
// AdamW with decoupled weight decay, one fused pass over value, gradient and both moments.

#include <cstdint>

#include "scheduler/parameter.hpp"

namespace airmoe::scheduler {

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;  ///< applied where Parameter::decay is set
};

/// One update of the local rows, elementwise and therefore the same for any split over ranks:
///   g = gradient_scale * gradient;  m1 = b1 m1 + (1-b1) g;  m2 = b2 m2 + (1-b2) g^2
///   value -= learning_rate * (m1 / (1-b1^step) / (sqrt(m2 / (1-b2^step)) + epsilon) + decay value)
/// and the gradient is set to zero for the next step. Local.
/// @param step            1 for the first update; throws Error when smaller
/// @param gradient_scale  folds averaging and clipping into this pass
void adamw_step(Parameter& parameter, const AdamWOptions& options, float learning_rate,
                int64_t step, float gradient_scale);
/// Every parameter of the set, in order.
void adamw_step(ParameterSet& parameters, const AdamWOptions& options, float learning_rate,
                int64_t step, float gradient_scale);

}  // namespace airmoe::scheduler
