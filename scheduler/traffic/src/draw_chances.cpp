#include <cmath>

#include "scheduler/traffic/estimate.hpp"

namespace airmoe::scheduler {

DrawChances::DrawChances(int64_t length, int64_t active)
    : length_(length), active_(active), log_factorial_(static_cast<std::size_t>(length) + 1, 0.0) {
  for (int64_t i = 1; i <= length; ++i) {
    log_factorial_[i] = log_factorial_[i - 1] + std::log(static_cast<double>(i));
  }
}

double DrawChances::none(int64_t candidates) const {
  if (length_ - candidates < active_) return 0.0;
  return std::exp(choose(length_ - candidates, active_) - choose(length_, active_));
}

double DrawChances::all(int64_t candidates) const {
  if (candidates < active_) return 0.0;
  return std::exp(choose(candidates, active_) - choose(length_, active_));
}

}  // namespace airmoe::scheduler
