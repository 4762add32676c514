#include "scheduler/traffic/src/copy_traffic.hpp"

#include "comm/base/partition.hpp"
#include "scheduler/traffic/cover_table.hpp"

namespace airmoe::scheduler {

void add_lists_to_mergers(const RoutingTrace& trace, const Placement& placement,
                          StepTraffic& traffic) {
  const std::vector<int64_t> owned = owned_by_rank(placement);
  const BlockPartition merged{trace.codewords(), placement.ranks};
  for (int owner = 0; owner < placement.ranks; ++owner) {
    const int64_t entries = std::min(trace.length, owned[owner]);
    for (int merger = 0; merger < placement.ranks; ++merger) {
      const int64_t bytes = 8 * entries * merged.size(merger);
      if (merger != owner && bytes > 0) traffic.message(Channel::lists, owner, merger, bytes);
    }
  }
}

}  // namespace airmoe::scheduler
