#include "scheduler/store/src/verify_file.hpp"

#include <optional>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/src/describe_file.hpp"
#include "scheduler/store/src/posix_file.hpp"
#include "scheduler/store/stored_data.hpp"

namespace airmoe::scheduler {

namespace {

struct Block {
  const DatasetInfo* dataset;
  int64_t block;
};

// Large datasets: the part of the next rank. Small ones go round all ranks.
int verifier_of(std::size_t dataset, int64_t block, int64_t blocks, int ranks) {
  const auto shift = blocks >= ranks ? ranks - 1 : static_cast<int64_t>(dataset % 1024);
  const int64_t part = blocks >= ranks ? BlockPartition{blocks, ranks}.owner(block) : block + 1;
  return static_cast<int>((part + shift) % ranks);
}

std::vector<Block> blocks_of_rank(const StoredFile& file, int rank, int ranks) {
  std::vector<Block> result;
  for (std::size_t i = 0; i < file.datasets.size(); ++i) {
    const DatasetInfo& d = file.datasets[i];
    for (int64_t block = 0; block < d.num_blocks(); ++block) {
      if (verifier_of(i, block, d.num_blocks(), ranks) == rank) result.push_back({&d, block});
    }
  }
  return result;
}

}  // namespace

void verify_file(comm::Communicator& comm, const StoredFile& file, bool past_cache) {
  const auto blocks = blocks_of_rank(file, comm.rank(), comm.size());
  std::vector<int64_t> bytes;
  for (const auto& b : blocks) bytes.push_back(b.dataset->block_rows * b.dataset->row_bytes());
  std::optional<StoredData> data;
  together(comm, [&] {
    data.emplace(file);
    if (past_cache) data->drop_cache();
  });
  const auto verify = [&](std::size_t i) {
    BlockFault fault;
    if (data->verify_block(*blocks[i].dataset, blocks[i].block, fault)) return;
    fail(ExitCode::bad_data, "{}: {}, by rank {} on {}", file.path, fault.text(*blocks[i].dataset),
         comm.rank(), host_name());
  };
  in_rounds(comm, bytes, verify, [] {});
}

StoredFile read_stored_file_together(comm::Communicator& comm, const std::string& path,
                                     const ReadLimits& limits) {
  std::string bytes;
  on_root(comm, [&] { bytes = serialize(read_stored_file(path, limits)); });
  broadcast_string(comm, bytes);
  return deserialize(bytes);
}

}  // namespace airmoe::scheduler
