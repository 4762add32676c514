#pragma once
// The UCX backend: messages by UCX's tag matching, started with the help of MPI.

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "comm/communicator.hpp"

namespace airmoe::comm {

/// Which transports carry the messages is left to UCX and its environment variables (UCX_TLS,
/// UCX_NET_DEVICES).
struct UcxOptions {
  /// Longest wait inside one call before Error(ExitCode::watchdog).
  double deadline_seconds = 600;
  /// Larger messages are cut into pieces of this many bytes, at least 8. UCX has no limit of its
  /// own, so by default every message is one piece.
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();
  /// For tests and studies on one machine: every run of so many ranks plays a node, and messages
  /// between such nodes take the transports of a network. 0: nodes are the machines.
  int64_t ranks_per_node = 0;
};

/// Local: whether airmoe was built with UCX.
bool has_ucx();

/// Local: version of the UCX library, for example "1.13.1"; empty without UCX.
std::string ucx_library_version();

/// Collective over all ranks of the run; needs a live MpiEnvironment, which must outlive the
/// result. MPI carries the ranks' addresses at the start and a last agreement at the end, nothing
/// in between. Has the bits and the errors of the MPI backend. A peer on another host whose
/// connection breaks is reported two seconds later, before the deadline; its name stands in the
/// message. Throws Error(ExitCode::config) when built without UCX or when no transport of UCX_TLS
/// works.
std::unique_ptr<Communicator> make_ucx_communicator(const UcxOptions& options = {});

}  // namespace airmoe::comm
