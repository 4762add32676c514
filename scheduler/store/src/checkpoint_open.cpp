#include <filesystem>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/src/checkpoint_directory.hpp"
#include "scheduler/store/src/checkpoint_meta.hpp"
#include "scheduler/store/src/posix_file.hpp"
#include "scheduler/store/src/verify_file.hpp"

namespace airmoe::scheduler {

namespace {

namespace fs = std::filesystem;

// Collective: one file, or an Error that is equal on all ranks.
OpenedCheckpoint open_file(comm::Communicator& comm, const std::string& path,
                           const OpenOptions& options) {
  OpenedCheckpoint opened;
  opened.file = read_stored_file_together(comm, path, options.limits);
  opened.meta = meta_of(opened.file);
  verify_file(comm, opened.file, false);
  return opened;
}

// Collective: candidates of a directory, or the file itself.
std::vector<std::string> candidates(comm::Communicator& comm, const std::string& path,
                                    bool& is_directory) {
  std::string lines;
  on_root(comm, [&] {
    std::error_code error;
    const auto status = fs::status(path, error);
    if (!fs::exists(status))
      fail(ExitCode::bad_data, "checkpoint {}: no such file or directory", path);
    if (!fs::is_directory(status)) {
      lines = fmt::format("{}\n", path);
      return;
    }
    lines = '\n';
    for (const auto& file : resume_order(path)) lines += file.path + "\n";
    if (lines.size() == 1) {
      fail(ExitCode::bad_data, "checkpoint directory {}: holds no checkpoint (step-*.h5)", path);
    }
  });
  broadcast_string(comm, lines);
  is_directory = lines[0] == '\n';
  std::vector<std::string> paths;
  for (std::size_t at = is_directory ? 1 : 0; at < lines.size();) {
    const std::size_t end = lines.find('\n', at);
    paths.push_back(lines.substr(at, end - at));
    at = end + 1;
  }
  return paths;
}

}  // namespace

OpenedCheckpoint open_checkpoint(comm::Communicator& comm, const std::string& path,
                                 const OpenOptions& options) {
  const comm::ScopedPhase phase(comm, "checkpoint open");
  bool is_directory = false;
  const auto paths = candidates(comm, path, is_directory);
  for (std::size_t i = 0; i < paths.size(); ++i) {
    try {
      return open_file(comm, paths[i], options);
    } catch (const Error& e) {
      if (e.code() != ExitCode::bad_data && e.code() != ExitCode::io) throw;
      if (!is_directory) throw Error(ExitCode::bad_data, fmt::format("checkpoint {}", e.what()));
      const std::string next =
          i + 1 < paths.size() ? fmt::format(" Trying {}.", file_name_of(paths[i + 1])) : "";
      if (comm.rank() == 0 && options.notify) {
        options.notify(fmt::format("checkpoint {}.{}", e.what(), next));
      }
    }
  }
  fail(ExitCode::bad_data,
       "checkpoint directory {}: none of its {} checkpoints is good. To start anew, choose another "
       "directory.",
       path, paths.size());
}

bool has_checkpoint(comm::Communicator& comm, const std::string& dir) {
  int32_t found = 0;
  on_root(comm, [&] { found = list_checkpoints(dir).empty() ? 0 : 1; });
  comm.broadcast(std::span<int32_t>(&found, 1), 0);
  return found == 1;
}

}  // namespace airmoe::scheduler
