#pragma once
// A UCX worker with an endpoint to every rank that is spoken to: how it starts, polls and ends.

#include <chrono>
#include <cstdint>
#include <exception>
#include <vector>

#include <mpi.h>
#include <ucp/api/ucp.h>

#include "comm/message.hpp"
#include "comm/src/mpi_check.hpp"
#include "comm/ucx_communicator.hpp"

namespace airmoe::comm {

class UcxOperations;

/// "ucp_init: <the library's text>"
std::string ucx_error_text(ucs_status_t status, const char* call);

/// Endpoints to ranks of the same host have no error handling, which UCX's shared memory does not
/// offer; those to other hosts have, and their loss ends waits before the deadline.
class UcxWorker {
 public:
  /// Collective over `parent`, which is duplicated.
  UcxWorker(MPI_Comm parent, const UcxOptions& options);
  /// Collective unless a call has failed: waits, at most for the deadline, until all ranks are
  /// here. When some rank has failed or does not come, nothing is given back to the system, because
  /// messages could still be under way; the process is about to end then.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  int rank() const { return context_.rank; }
  int size() const { return size_; }
  ucp_worker_h handle() const { return worker_; }

  /// Local: the endpoint to another rank; made at its first use.
  ucp_ep_h endpoint(int peer);

  /// Local: lets messages move; true when something did.
  bool progress() { return ucp_worker_progress(worker_) != 0; }

  /// Polls until done() is true. After the deadline, or some time after a connection was lost,
  /// throws Error(ExitCode::watchdog) with missing(), which says who has not answered. Any
  /// exception abandons the worker.
  template <class Done, class Missing>
  void wait_until(const char* phase, const char* operation, Done done, Missing missing) {
    guarded([&] {
      Deadline deadline(context_);
      int idle = 0;
      for (unsigned turn = 1; !done(); ++turn) {
        idle = progress() ? 0 : idle + 1;
        if (idle < kSpins && turn % kTurnsPerLook != 0) continue;
        if (deadline.poll() || lost_for_long()) {
          deadline.expire(phase, operation, missing() + losses());
        }
      }
    });
  }

  /// Calls action(); an exception that leaves it abandons the worker.
  template <class Action>
  void guarded(Action action) {
    try {
      action();
    } catch (...) {
      abandon();
      throw;
    }
  }

  /// Throws Error(ExitCode::failure) when the worker is abandoned.
  void check_usable() const;
  bool abandoned() const { return abandoned_; }
  /// Ends what is under way while the caller's memory still exists, so that nothing is written
  /// there later. The worker is good for nothing afterwards.
  void abandon() noexcept;

  /// A connection that broke; the time since then decides when waits end.
  void note_loss(int peer, ucs_status_t status) noexcept;
  bool lost_for_long() const;
  /// " (lost connections: rank 2: Connection reset by remote peer)", or nothing.
  std::string losses() const;

 private:
  friend class UcxOperations;
  // Polls that find nothing before the core is given away, and polls between looks at the clock.
  static constexpr int kSpins = 20;
  static constexpr unsigned kTurnsPerLook = 256;

  struct Peer {
    UcxWorker* worker = nullptr;
    int rank = 0;
    bool is_near = false;  // on this host
    ucp_ep_h endpoint = nullptr;
    ucs_status_t loss = UCS_OK;
  };
  void start_worker();
  void exchange_addresses(const WaitContext& starting, const std::string& problem);
  bool leave_together() noexcept;
  bool close_endpoints(unsigned flags, double seconds) noexcept;

  MPI_Comm comm_ = MPI_COMM_NULL;
  WaitContext context_;
  int size_ = 1;
  ucp_context_h ucp_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::vector<Peer> peers_;
  std::vector<int> address_offsets_;
  std::vector<std::byte> addresses_;
  std::vector<UcxOperations*> operations_;  // all that may be under way
  bool abandoned_ = false;
  bool some_lost_ = false;
  std::chrono::steady_clock::time_point first_loss_;
};

}  // namespace airmoe::comm
