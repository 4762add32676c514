#pragma once
// The libraries under the store.

#include <string>
#include <utility>
#include <vector>

namespace airmoe::scheduler {

/// Name and version of each, the linked one where the library tells. Local.
std::vector<std::pair<std::string, std::string>> store_libraries();

}  // namespace airmoe::scheduler
