#pragma once
// Where the selected experts of each token of a trace are owned. Private.

#include <cstdint>
#include <vector>

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/bit_rows.hpp"
#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::scheduler {

/// T * ranks counts of two bytes.
class OwnerCounts {
 public:
  OwnerCounts(const RoutingTrace& trace, const Placement& placement)
      : ranks_(placement.ranks),
        sets_(trace.tokens(), placement.ranks),
        count_(static_cast<std::size_t>(trace.tokens() * placement.ranks), 0) {
    for (int64_t t = 0; t < trace.tokens(); ++t) {
      for (const int32_t e : trace.selected(t)) {
        const int32_t r = placement.home[e];
        if (count_[t * ranks_ + r]++ == 0) sets_.set(t, r);
      }
    }
  }

  /// Selected experts of token t that rank r owns.
  int64_t at(int64_t t, int r) const { return count_[t * ranks_ + r]; }
  /// Ranks that own any.
  std::span<const uint64_t> ranks_of(int64_t t) const { return sets_.row(t); }

 private:
  int ranks_;
  BitRows sets_;
  std::vector<uint16_t> count_;
};

}  // namespace airmoe::scheduler
