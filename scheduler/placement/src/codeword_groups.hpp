#pragma once
// Codewords with similar shortlists brought together: graph partitioning by METIS.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/inverted_lists.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

/// The graph whose vertices are parts, weighted by tokens, and whose edges are shared candidates
/// (of a sample of the experts; an expert in few lists counts more).
class CodewordGraph {
 public:
  CodewordGraph(const PlanInput& input, const Parts& parts, const InvertedLists& lists);

  /// A group for each part: METIS cuts few heavy edges. Work is balanced only as well as METIS does
  /// it. Parts without tokens get a group all the same. With hardly more parts than groups, parts
  /// go by weight alone.
  /// @param share  of the tokens that each group should have, sums to 1. Shape: [groups]
  std::vector<int32_t> partition(const std::vector<double>& share) const;

 private:
  std::vector<int32_t> heaviest_to_lightest(const std::vector<double>& share) const;

  // METIS's compressed rows, in its integer type (32 bits in all packages).
  std::vector<int32_t> begin_, to_, edge_weight_, vertex_weight_;
};

}  // namespace airmoe::scheduler::placement
