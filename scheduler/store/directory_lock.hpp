#pragma once
// Keeps two runs out of one checkpoint directory.

#include <memory>
#include <string>

#include "comm/communicator.hpp"
#include "scheduler/store/notify.hpp"

namespace airmoe::scheduler {

/// Holds <dir>/.lock (made with the directory when missing): host, process, job, and a heartbeat,
/// which is the file's modification time. Released by the destructor (rank 0).
class DirectoryLock {
 public:
  /// Collective. A lock whose process is gone (same host) or whose heartbeat is older than 60 s
  /// (another host) is taken over with a notice. Else every rank throws Error(ExitCode::try_again).
  /// Then removes temporary checkpoint files that dead runs left, and names them.
  DirectoryLock(comm::Communicator& comm, const std::string& dir,
                const Notify& notify = notify_stderr);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  /// Local, cheap: call it every step; touches the file on rank 0 at most every 10 s. Throws
  /// Error(ExitCode::try_again) there when another run took the lock over.
  void refresh();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace airmoe::scheduler
