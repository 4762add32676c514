#pragma once
// SIGTERM and SIGUSR1: finish the step, write a checkpoint, leave with ExitCode::saved_on_signal.

namespace airmoe::scheduler {

/// Catches both signals while it lives; one per process. The handler only sets a flag, so it is
/// safe during communication; a second signal changes nothing.
class StopRequest {
 public:
  StopRequest();
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  /// Local: the signal that arrived on this rank, or 0. Ranks agree on it at the end of a step.
  int signal() const;
};

}  // namespace airmoe::scheduler
