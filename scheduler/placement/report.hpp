#pragma once
// What a placement costs, counted.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"

namespace airmoe::scheduler {

struct PlacementReport {
  std::vector<int64_t> owned;   ///< experts per rank.            Shape: [R]
  std::vector<int64_t> copies;  ///< per rank.                    Shape: [R]
  std::vector<double> tokens;   ///< that a rank takes, per step. Shape: [R]
  std::vector<double> work;     ///< tokens times candidates.     Shape: [R]
  double rows_max = 0;          ///< most experts with a row on a rank, over E / R
  double rows_mean = 0;         ///< mean of that
  double mean_cover = 0;        ///< ranks per token (lambda candidate)
  double tokens_imbalance = 1;  ///< max / mean over ranks; 1 if there are none
  double work_imbalance = 1;

  // Bytes per optimizer step, over all ranks.
  double token_bytes = 0;   ///< per_token_rank of tokens that do not live where they go
  double shared_bytes = 0;  ///< shared_token_rank of these
  double copy_fetch_bytes = 0;
  double copy_return_bytes = 0;
  double bytes() const { return token_bytes + shared_bytes + copy_fetch_bytes + copy_return_bytes; }
};

/// Local. Counts what `placement` does with the lists and tokens of `input`; tokens live evenly on
/// all ranks. Memory: R * E bits.
PlacementReport report(const PlanInput& input, const Placement& placement);

/// Local. Experts with another owner.
int64_t moved_homes(const Placement& before, const Placement& after);

/// Local. Throws Error(ExitCode::failure) unless the placement is complete: equal homes, parts of
/// every codeword, ranks in range, rows within the budget of `input`.
void check_placement(const PlanInput& input, const Placement& placement);

}  // namespace airmoe::scheduler
