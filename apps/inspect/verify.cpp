#include "apps/inspect/report.hpp"

namespace airmoe::inspect {

Json verify_blocks(const scheduler::StoredFile& file, scheduler::StoredData& data,
                   Problems& problems) {
  int64_t blocks = 0;
  int64_t bad = 0;
  int64_t bytes = 0;
  for (const auto& d : file.datasets) {
    for (int64_t block = 0; block < d.num_blocks(); ++block) {
      scheduler::BlockFault fault;
      ++blocks;
      if (data.verify_block(d, block, fault)) continue;
      ++bad;
      problems.push_back(fault.text(d));
    }
    bytes += d.bytes();
  }
  return {{"blocks", blocks}, {"bytes", bytes}, {"bad_blocks", bad}};
}

}  // namespace airmoe::inspect
