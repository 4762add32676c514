#pragma once
// From HDF5 objects to StoredFile and to bytes that travel between processes.

#include <string>

#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

inline constexpr const char* kIntegrityGroup = "/integrity";

/// Reads everything but data and judges nothing except what it cannot represent. In this process.
StoredFile describe_file(const std::string& path);

/// Checks size and signature against the superblock without HDF5. Throws as read_stored_file.
void check_superblock(const std::string& path);

/// Throws when the file is of another program or of a newer format version, not sealed, or when its
/// datasets, checksum tables and digest do not fit together.
void check_description(const StoredFile& file);

std::string serialize(const StoredFile& file);
StoredFile deserialize(const std::string& bytes);

}  // namespace airmoe::scheduler
