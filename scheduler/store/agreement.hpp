#pragma once
// Local work that may fail on some ranks, inside a collective operation: all ranks learn of it.

#include <exception>
#include <functional>
#include <optional>
#include <span>

#include "comm/base/error.hpp"
#include "comm/communicator.hpp"

namespace airmoe::scheduler {

/// Collective. When any rank brings an error, every rank throws that of the lowest such rank.
void agree(comm::Communicator& comm, const std::optional<Error>& error);

/// Collective: runs `work` on this rank, then agrees. `work` must not communicate.
template <class Work>
void together(comm::Communicator& comm, Work&& work) {
  std::optional<Error> error;
  try {
    work();
  } catch (const Error& e) {
    error = e;
  } catch (const std::exception& e) {
    error = Error(ExitCode::failure, e.what());
  }
  agree(comm, error);
}

/// Collective: the same, on rank 0 only.
template <class Work>
void on_root(comm::Communicator& comm, Work&& work) {
  together(comm, [&] {
    if (comm.rank() == 0) work();
  });
}

/// Collective: runs job(i) for every i of this rank's `job_bytes`, in rounds of about 256 MiB, each
/// ended by end_round() and an agreement. So an error stops all ranks soon, and no rank waits
/// longer for another than one round takes. The rank with most bytes sets the number of rounds.
void in_rounds(comm::Communicator& comm, std::span<const int64_t> job_bytes,
               const std::function<void(std::size_t)>& job, const std::function<void()>& end_round);

/// Collective: the string of rank 0 replaces that of the others.
void broadcast_string(comm::Communicator& comm, std::string& text);

}  // namespace airmoe::scheduler
