#include "comm/library_version.hpp"

#include <array>

#include <mpi.h>

namespace airmoe::comm {

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string all = text.data();  // some libraries count the final zero in `length`
  const std::string line = all.substr(0, all.find('\n'));
  return line.substr(0, line.find_last_not_of(" \t\r") + 1);
}

}  // namespace airmoe::comm
