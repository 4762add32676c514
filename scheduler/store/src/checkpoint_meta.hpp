#pragma once
// CheckpointMeta as root attributes and back.

#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/sharded_file.hpp"

namespace airmoe::scheduler {

FileHeader header_of(const CheckpointMeta& meta);
/// Throws Error(ExitCode::bad_data) when the file is no checkpoint or an attribute is missing.
CheckpointMeta meta_of(const StoredFile& file);

/// "2026-05-17T09:12:33Z"
std::string utc_now();
/// Random, version 4.
std::string make_uuid();

}  // namespace airmoe::scheduler
