#include "scheduler/optim/learning_rate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

double LearningRateSchedule::at(int64_t step) const {
  if (step < warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  if (step >= total_steps) return peak * final_fraction;
  const double progress =
      static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
  const double left = shape == ScheduleShape::linear
                          ? 1.0 - progress
                          : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return peak * (final_fraction + (1.0 - final_fraction) * left);
}

void LearningRateSchedule::validate() const {
  if (!std::isfinite(peak) || peak < 0) {
    fail(ExitCode::config, "--lr {} is not a finite number >= 0: choose for example 1e-3", peak);
  }
  if (total_steps < 1) {
    fail(ExitCode::config, "--schedule-steps {} is not positive: choose 1 or more", total_steps);
  }
  if (warmup_steps < 0) {
    fail(ExitCode::config, "--warmup {} is negative: choose 0 or more steps", warmup_steps);
  }
  if (warmup_steps > total_steps) {
    fail(ExitCode::config, "--warmup {} is longer than --schedule-steps {}: choose a shorter one",
         warmup_steps, total_steps);
  }
  if (!(final_fraction >= 0.0 && final_fraction <= 1.0)) {
    fail(ExitCode::config, "--lr-final-fraction {} is outside [0, 1]: choose for example {}",
         final_fraction, default_final_fraction(shape));
  }
}

double default_final_fraction(ScheduleShape shape) {
  return shape == ScheduleShape::cosine ? 0.1 : 0.0;
}

const char* name_of(ScheduleShape shape) {
  return shape == ScheduleShape::linear ? "linear" : "cosine";
}

ScheduleShape parse_schedule_shape(const std::string& name) {
  for (const auto shape : {ScheduleShape::linear, ScheduleShape::cosine}) {
    if (name == name_of(shape)) return shape;
  }
  fail(ExitCode::usage, "--schedule {} is unknown: choose linear or cosine", name);
}

}  // namespace airmoe::scheduler
