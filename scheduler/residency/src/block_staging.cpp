#include "scheduler/residency/block_staging.hpp"

namespace airmoe::scheduler {

float* BlockStaging::stage(ExpertResidency& residency, float* rows, int64_t row_size) {
  if (residency.in_blocks()) return rows;
  Buffer<float>& block = staged_.emplace_back(residency.owned() * row_size);
  residency.to_blocks(rows, row_size, block.data());
  return block.data();
}

}  // namespace airmoe::scheduler
