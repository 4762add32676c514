#include "scheduler/traffic/plan_costs.hpp"

#include <algorithm>

namespace airmoe::scheduler {

PlanCosts plan_costs(const TrafficShape& shape, int64_t active, int64_t length,
                     int64_t micro_batches) {
  const int64_t returned = shape.combine_width() + shape.dim;
  const int64_t scores = 4 * std::min(active, (length + 1) / 2);  // half of the list on each of two
  const int64_t usage = 12 * micro_batches;
  PlanCosts costs;
  costs.per_token_rank =
      static_cast<double>(shape.dispatch_bytes() + shape.backward_bytes() + 4 * returned);
  costs.shared_token_rank = static_cast<double>(scores + 16 + (shape.sum_bytes() - 4) * returned);
  // The unit centroid of every copy, the rest of those that are selected.
  costs.per_copy_fetch = static_cast<double>(4 + 4 * shape.dim);
  costs.per_copy_return = static_cast<double>(4 + 4 * (shape.values() - shape.dim) +
                                              shape.copy_gradient_bytes() + usage);
  return costs;
}

}  // namespace airmoe::scheduler
