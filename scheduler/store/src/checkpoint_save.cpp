#include <algorithm>
#include <filesystem>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/sharded_file.hpp"
#include "scheduler/store/src/checkpoint_directory.hpp"
#include "scheduler/store/src/checkpoint_meta.hpp"
#include "scheduler/store/src/posix_file.hpp"
#include "scheduler/store/stored_data.hpp"

namespace airmoe::scheduler {

namespace {

StoredArray stored(const StateArray& state, bool root) {
  StoredArray array{state.path,      state.dtype,     state.shape,
                    state.row_begin, state.row_count, state.data};
  if (state.replicated) {
    array.row_begin = 0;
    array.row_count = root && !state.shape.empty() ? state.shape[0] : 0;
  }
  return array;
}

void check_finite(const StoredArray& array, int rank) {
  int64_t row_size = 1;
  for (std::size_t i = 1; i < array.shape.size(); ++i) row_size *= array.shape[i];
  if (all_finite(array.dtype, array.data, array.row_count * row_size)) return;
  const auto* bytes = static_cast<const char*>(array.data);
  int64_t row = 0;
  while (all_finite(array.dtype, bytes + row * row_size * size_of(array.dtype), row_size)) ++row;
  fail(ExitCode::not_finite,
       "{} row {} is not finite (rank {}): no checkpoint is written, older ones are kept",
       array.path, array.row_begin + row, rank);
}

}  // namespace

SavedCheckpoint save_checkpoint(comm::Communicator& comm, const std::string& dir,
                                const CheckpointMeta& meta, std::span<const StateArray> arrays,
                                const SaveOptions& options) {
  std::vector<StoredArray> stored_arrays;
  for (const auto& a : arrays) stored_arrays.push_back(stored(a, comm.rank() == 0));
  together(comm, [&] {
    for (const auto& a : stored_arrays) check_finite(a, comm.rank());
  });
  CheckpointMeta full = meta;
  std::string identity = fmt::format("{} {}", make_uuid(), utc_now());  // of rank 0 on all
  broadcast_string(comm, identity);
  full.uuid = identity.substr(0, identity.find(' '));
  full.created_utc = identity.substr(identity.find(' ') + 1);
  full.world_size = comm.size();
  on_root(comm, [&] {
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    if (error) fail(ExitCode::io, "{}: cannot make the directory: {}", dir, error.message());
  });

  const std::string path = checkpoint_path(dir, meta.step);
  const WriteResult written =
      write_sharded_file(comm, path, header_of(full), stored_arrays, {options.read_back, false});
  SavedCheckpoint saved{path, full.uuid, written.bytes, written.seconds, {}};
  std::string removed;
  on_root(comm, [&] {
    write_latest(path, written.bytes, written.root_digest);
    for (const auto& file :
         rotate(dir, meta.step, std::max<int64_t>(1, options.keep), {path, options.never_remove})) {
      removed += file + '\n';
    }
  });
  broadcast_string(comm, removed);
  for (std::size_t at = 0; at < removed.size();) {
    const std::size_t end = removed.find('\n', at);
    saved.removed.push_back(removed.substr(at, end - at));
    at = end + 1;
  }
  return saved;
}

}  // namespace airmoe::scheduler
