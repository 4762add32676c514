#include "comm/library_version.hpp"

#include <array>

#include <mpi.h>

namespace airmoe::comm {

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string all(text.data(), static_cast<std::size_t>(length));
  return all.substr(0, all.find('\n'));
}

}  // namespace airmoe::comm
