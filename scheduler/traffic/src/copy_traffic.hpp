#pragma once
// Traffic of copies, and what selections made of them. Private.

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/placement/placement.hpp"
#include "scheduler/traffic/bit_rows.hpp"
#include "scheduler/traffic/routing_trace.hpp"
#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::scheduler {

class CopyTraffic {
 public:
  CopyTraffic(const Placement& placement, StepTraffic& traffic)
      : placement_(placement),
        traffic_(traffic),
        by_owner_(static_cast<std::size_t>(placement.ranks), 0) {}

  /// `experts`: those that `holder` asks for and gets `values` floats of. @return copies among them
  int64_t fetched(int holder, std::span<const uint64_t> experts, int64_t values) {
    return for_each_owner(holder, experts, [&](int owner, int64_t n) {
      traffic_.message(Channel::copy_requests, holder, owner, 4 * n);
      traffic_.message(Channel::copy_values, owner, holder, 4 * n * values);
    });
  }
  /// `experts`: those selected on `holder` in one micro-batch.
  void counted(int holder, std::span<const uint64_t> experts) {
    for_each_owner(holder, experts, [&](int owner, int64_t n) {
      traffic_.message(Channel::usage_to_owner, holder, owner, 8 * n);
      traffic_.message(Channel::usage_to_copy, owner, holder, 4 * n);
    });
  }
  /// `experts`: those selected on `holder` in the step; `bytes` each.
  void returned(int holder, std::span<const uint64_t> experts, int64_t bytes) {
    for_each_owner(holder, experts, [&](int owner, int64_t n) {
      traffic_.message(Channel::copy_gradients, holder, owner, bytes * n);
      ++traffic_.at(Channel::copy_gradients, holder).messages;  // ids, then rows
    });
  }

 private:
  template <class Visit>
  int64_t for_each_owner(int holder, std::span<const uint64_t> experts, Visit&& visit) {
    std::fill(by_owner_.begin(), by_owner_.end(), 0);
    for_each_in(experts, [&](int64_t e) { ++by_owner_[placement_.home[e]]; });
    int64_t copies = 0;
    for (int owner = 0; owner < placement_.ranks; ++owner) {
      if (owner == holder || by_owner_[owner] == 0) continue;
      copies += by_owner_[owner];
      visit(owner, by_owner_[owner]);
    }
    return copies;
  }

  const Placement& placement_;
  StepTraffic& traffic_;
  std::vector<int64_t> by_owner_;
};

/// Approximate traffic of the list rebuild: owners send their best min(M,
/// owned) of each codeword to the rank that merges it, 8 bytes each. (What
/// mergers send on depends on the strategy.)
void add_lists_to_mergers(const RoutingTrace& trace, const Placement& placement,
                          StepTraffic& traffic);

}  // namespace airmoe::scheduler
