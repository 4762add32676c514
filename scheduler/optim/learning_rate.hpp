#pragma once
// Learning rate as a pure function of the step: nothing to save or restore.

#include <cstdint>
#include <string>

namespace airmoe::scheduler {

enum class ScheduleShape : uint8_t { linear, cosine };

/// Linear warm-up to peak, then linear or cosine decay to final_fraction * peak at total_steps,
/// constant from there on.
struct LearningRateSchedule {
  ScheduleShape shape = ScheduleShape::linear;
  double peak = 1e-3;
  int64_t warmup_steps = 0;
  int64_t total_steps = 1;      ///< length of the whole schedule, warm-up included
  double final_fraction = 0.0;  ///< see default_final_fraction()

  /// Learning rate of step `step`, counted from 0: peak * (step + 1) / warmup_steps in the warm-up,
  /// peak at step == warmup_steps.
  double at(int64_t step) const;
  /// Throws Error(ExitCode::config) naming the option, its value and the remedy.
  void validate() const;
};

/// 0 for linear (as the paper), 0.1 for cosine.
double default_final_fraction(ScheduleShape shape);

const char* name_of(ScheduleShape shape);
/// Throws Error(ExitCode::usage) naming the shapes for any other name.
ScheduleShape parse_schedule_shape(const std::string& name);

}  // namespace airmoe::scheduler
