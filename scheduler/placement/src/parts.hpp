#pragma once
// Parts: codewords, the heavy ones split by tokens so that work can be balanced over ranks.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"

namespace airmoe::scheduler::placement {

struct Parts {
  std::vector<int32_t> begin;     ///< parts of codeword g: [begin[g], begin[g + 1]). Shape: [G + 1]
  std::vector<int32_t> codeword;  ///< of a part.            Shape: [parts]
  std::vector<double> tokens;     ///< of a part, per step.  Shape: [parts]

  int64_t count() const { return std::ssize(codeword); }
};

/// Parts no heavier than about a rank's share, fewer tokens each if that is what it takes to pack
/// them evenly.
Parts split_codewords(const PlanInput& input);

/// One part per codeword.
Parts whole_codewords(const PlanInput& input);

/// The parts of `previous`, except for codewords whose tokens now call for at least twice as many
/// or at most half as many: these get the number that split_codewords() gives them.
Parts keep_parts(const PlanInput& input, const std::vector<int32_t>& previous);

/// Parts by falling tokens, ties by number.
std::vector<int32_t> heaviest_first(const Parts& parts);

}  // namespace airmoe::scheduler::placement
