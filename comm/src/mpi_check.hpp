#pragma once
// MPI return codes become Error; the deadline of a wait.

#include <chrono>

#include <mpi.h>
#include <sched.h>

#include "comm/base/error.hpp"

namespace airmoe::comm {

/// "MPI_Isend: <the library's text>"
std::string mpi_error_text(int code, const char* call);

/// Throws Error(ExitCode::failure) unless the call succeeded.
inline void mpi_check(int code, const char* call) {
  if (code != MPI_SUCCESS) throw Error(ExitCode::failure, mpi_error_text(code, call));
}

/// What every wait of one communicator needs to know to complain.
struct WaitContext {
  int rank = 0;
  double deadline_seconds = 0;
};

/// Started when a wait starts; a polling loop calls poll() each time round.
class Deadline {
 public:
  explicit Deadline(const WaitContext& context)
      : context_(context), start_(std::chrono::steady_clock::now()) {}

  /// Gives the core away. True when the deadline has passed.
  bool poll() {
    sched_yield();
    return seconds() > context_.deadline_seconds;
  }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  /// Throws Error(ExitCode::watchdog). `missing` says what did not come, for example "rank 2, 3".
  [[noreturn]] void expire(const char* phase, const char* operation,
                           const std::string& missing) const;

 private:
  const WaitContext& context_;
  std::chrono::steady_clock::time_point start_;
};

/// Waits for a non-blocking collective.
void wait_collective(MPI_Request* request, const WaitContext& context, const char* phase,
                     const char* operation);

}  // namespace airmoe::comm
