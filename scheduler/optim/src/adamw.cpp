#include "scheduler/optim/adamw.hpp"

#include <cmath>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

void adamw_step(Parameter& parameter, const AdamWOptions& options, float learning_rate,
                int64_t step, float gradient_scale) {
  AIRMOE_CHECK(step >= 1, "AdamW step {}: the first update is step 1", step);
  const double rate = learning_rate, beta1 = options.beta1, beta2 = options.beta2;
  const double decay = parameter.decay ? rate * static_cast<double>(options.weight_decay) : 0.0;
  const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  const float keep1 = options.beta1, add1 = static_cast<float>(1.0 - beta1);
  const float keep2 = options.beta2, add2 = static_cast<float>(1.0 - beta2);
  const float rate1 = static_cast<float>(rate / correction1);
  const float root2 = static_cast<float>(1.0 / std::sqrt(correction2));
  const float keep_value = static_cast<float>(1.0 - decay);
  const float epsilon = options.epsilon;

  float* __restrict value = parameter.value.data();
  float* __restrict gradient = parameter.gradient.data();
  float* __restrict moment1 = parameter.moment1.data();
  float* __restrict moment2 = parameter.moment2.data();
  const int64_t size = parameter.local_size();
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] * gradient_scale;
    const float m1 = keep1 * moment1[i] + add1 * g;
    const float m2 = keep2 * moment2[i] + add2 * (g * g);
    value[i] = keep_value * value[i] - rate1 * m1 / (std::sqrt(m2) * root2 + epsilon);
    moment1[i] = m1;
    moment2[i] = m2;
    gradient[i] = 0.0f;
  }
}

void adamw_step(ParameterSet& parameters, const AdamWOptions& options, float learning_rate,
                int64_t step, float gradient_scale) {
  for (auto& parameter : parameters.all()) {
    adamw_step(*parameter, options, learning_rate, step, gradient_scale);
  }
}

}  // namespace airmoe::scheduler
