#pragma once
// Moves parts between groups so that all groups together need fewer experts: local search on the
// hypergraph whose vertices are parts and whose nets are experts (cost: groups that an expert's
// parts are in). Gains are kept up to date, so a move costs what it changes.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/holders.hpp"
#include "scheduler/placement/src/inverted_lists.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

class GroupRefiner {
 public:
  /// @param group       of each part.                            Shape: [parts]
  /// @param most_tokens largest work that a group should have.  Shape: [groups]
  GroupRefiner(const PlanInput& input, const Parts& parts, const InvertedLists& lists,
               std::vector<int32_t> group, std::vector<double> most_tokens);

  /// Every part in turn goes to the group where it needs fewest experts that are not there, if the
  /// group's work allows it; until a sweep saves little or `sweeps` are done.
  void run(int sweeps);

  /// Group of each part. Shape: [parts]
  const std::vector<int32_t>& group() const { return group_; }

 private:
  /// Experts that the group would not need without the part.
  int64_t missing(int64_t part, int group) const {
    return group == group_[part] ? sole_[part]
                                 : lists_.length(part) - present_[part * groups_ + group];
  }
  double overload(int64_t part, int group) const;
  void move(int32_t part, int to);
  /// The one part, other than `part`, that uses the expert in the group.
  int32_t other_user(int32_t expert, int group, int32_t part) const;

  const PlanInput& input_;
  const Parts& parts_;
  const InvertedLists& lists_;
  int64_t groups_;
  std::vector<int32_t> group_, order_;
  std::vector<double> most_tokens_, load_;
  Holders users_;  // groups that use each expert
  Buffer<int32_t>
      present_;           // entries that a group needs anyway.              Shape: [parts, groups]
  Buffer<int32_t> sole_;  // entries that only the part needs in its group.  Shape: [parts]
  uint64_t shuffle_state_ = 1;
};

}  // namespace airmoe::scheduler::placement
