#pragma once
// Checks every block of a file, the work split over the ranks.

#include "comm/communicator.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

/// Collective. Rank r checks about the blocks whose rows rank r + 1 would write. Every rank throws
/// the same Error(ExitCode::bad_data) naming dataset, block, rows, and the rank that found it. With
/// `past_cache`, asks for reads from the device.
void verify_file(comm::Communicator& comm, const StoredFile& file, bool past_cache);

/// Collective: rank 0 runs read_stored_file, all get the result.
StoredFile read_stored_file_together(comm::Communicator& comm, const std::string& path,
                                     const ReadLimits& limits);

}  // namespace airmoe::scheduler
