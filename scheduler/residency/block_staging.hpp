#pragma once
// Rows of experts in the order that files have them, whoever owns the experts.

#include <cstdint>
#include <vector>

#include "comm/base/buffer.hpp"
#include "scheduler/residency/expert_residency.hpp"

namespace airmoe::scheduler {

/// Holds rows by block of expert id while a file is written. Memory: nothing while homes are
/// blocks, else as much as the arrays that were staged.
class BlockStaging {
 public:
  /// Collective. The rows of this rank's block of expert ids, of an array with one row per owned
  /// expert: `rows` itself while homes are blocks, else a copy that lives until clear().
  /// Shapes: [residency.owned(), row_size]
  float* stage(ExpertResidency& residency, float* rows, int64_t row_size);
  /// Local. Frees all copies.
  void clear() { staged_.clear(); }

 private:
  std::vector<Buffer<float>> staged_;
};

}  // namespace airmoe::scheduler
