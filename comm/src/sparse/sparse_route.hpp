#pragma once
// What the algorithms of a sparse exchange have in common.

#include <span>

#include <mpi.h>

#include "comm/message.hpp"
#include "comm/src/mpi_check.hpp"

namespace airmoe::comm {

inline constexpr const char* kSparseOperation = "sparse_exchange";

/// The ranks that an algorithm works on, and its limits. The context outlives it.
struct SparseLink {
  MPI_Comm comm;
  int size;
  const WaitContext& wait;
  int64_t max_message_bytes;

  int rank() const { return wait.rank; }
};

/// One algorithm of Communicator::sparse_exchange.
class SparseRoute {
 public:
  virtual ~SparseRoute() = default;
  /// Collective. No empty messages; `inbox` is replaced by what arrived, in source order, messages
  /// of one source in the order they were sent.
  virtual void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) = 0;
};

}  // namespace airmoe::comm
