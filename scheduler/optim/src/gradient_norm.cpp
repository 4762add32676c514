#include "scheduler/optim/gradient_norm.hpp"

namespace airmoe::scheduler {
namespace {

/// Eight partial sums, so that the compiler can vectorise; the order depends on `size` only.
double sum_of_squares(const float* x, int64_t size) {
  constexpr int64_t kLanes = 8;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const double value = x[i + j];
      lane[j] += value * value;
    }
  }
  for (int64_t j = 0; i < size; ++i, ++j) {
    const double value = x[i];
    lane[j] += value * value;
  }
  double total = 0.0;
  for (const double part : lane) total += part;
  return total;
}

}  // namespace

double local_sum_of_squares(const ParameterSet& parameters, bool count_replicated) {
  double total = 0.0;
  for (const auto& p : parameters.all()) {
    if (p->sharding == Sharding::replicated && !count_replicated) continue;
    total += sum_of_squares(p->gradient.data(), p->local_size());
  }
  return total;
}

double clip_factor(double norm, double clip) {
  return clip > 0 && norm > clip ? clip / norm : 1.0;
}

}  // namespace airmoe::scheduler
