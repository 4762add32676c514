#pragma once
// Before anything is written: do the ranks agree on the arrays, and do their rows cover each once?

#include <span>

#include "comm/communicator.hpp"
#include "scheduler/store/sharded_file.hpp"

namespace airmoe::scheduler {

/// Collective; every rank throws the same Error(ExitCode::failure) naming array, rows and ranks.
void check_coverage(comm::Communicator& comm, std::span<const StoredArray> arrays);

}  // namespace airmoe::scheduler
