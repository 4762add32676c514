#pragma once
// Which MPI library runs underneath.

#include <string>

namespace airmoe::comm {

/// First line of what the MPI library says of itself, for example "Open MPI v4.1.4, package: ...".
/// Local; works without MpiEnvironment.
std::string mpi_library_version();

}  // namespace airmoe::comm
