#pragma once
// Rank 0's part before and after the data: an HDF5 file with every dataset in its place and the
// disk space reserved, later its checksum tables and seal.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "scheduler/store/sharded_file.hpp"

namespace airmoe::scheduler {

/// Makes `temporary` (from `original` when it is not ""), closes it, flushes it and reserves all of
/// its space. Returns the byte where each array starts. Throws Error(ExitCode::io) with the free
/// space when it does not fit.
std::vector<int64_t> make_skeleton(const std::string& temporary, const std::string& original,
                                   const FileHeader& header, std::span<const StoredArray> arrays);

/// Writes the tables (one per array), the root digest and sealed = 1; flushes. Returns the digest.
std::string seal_file(const std::string& temporary, std::span<const StoredArray> arrays,
                      const std::vector<std::vector<uint32_t>>& tables);

}  // namespace airmoe::scheduler
