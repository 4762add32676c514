#pragma once
// Whole datasets in memory.

#include <string>
#include <vector>

#include "scheduler/store/stored_data.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::inspect {

/// Reads a dataset of element type T. Throws Error(ExitCode::bad_data) when it is missing, of
/// another type or another number of dimensions (unless that is 0), or has a wrong checksum.
template <class T>
std::vector<T> read_array(const scheduler::StoredFile& file, scheduler::StoredData& data,
                          const std::string& path, std::size_t dimensions);

/// Groups that hold a dataset called `name`, for example those of "/layers/02/moe/centroid".
std::vector<std::string> groups_with(const scheduler::StoredFile& file, const std::string& name);

}  // namespace airmoe::inspect
