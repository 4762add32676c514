#include "comm/src/sparse/shared_memory.hpp"

#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "comm/src/mpi_check.hpp"

namespace airmoe::comm {
namespace {

bool agree(MPI_Comm comm, bool mine) {
  int all = mine ? 1 : 0;
  mpi_check(MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce");
  return all != 0;
}

}  // namespace

// The first rank's memory file has no name that could be left behind; the others open it through
// that process's descriptors.
std::unique_ptr<SharedMemory> SharedMemory::make(MPI_Comm local, int64_t bytes) {
  int rank = 0;
  mpi_check(MPI_Comm_rank(local, &rank), "MPI_Comm_rank");
  int file = -1;
  int64_t place[2] = {0, -1};  // process, descriptor
  if (rank == 0) {
    file = memfd_create("airmoe", MFD_CLOEXEC);
    if (file >= 0 && ftruncate(file, bytes) == 0) {
      place[0] = getpid();
      place[1] = file;
    }
  }
  mpi_check(MPI_Bcast(place, 2, MPI_INT64_T, 0, local), "MPI_Bcast");
  if (rank != 0 && place[1] >= 0) {
    const std::string path = fmt::format("/proc/{}/fd/{}", place[0], place[1]);
    file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  }
  void* data = MAP_FAILED;
  if (file >= 0 && place[1] >= 0) {
    data =
        mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  const bool is_mapped = data != MAP_FAILED;
  const bool all_mapped = agree(local, is_mapped);
  if (file >= 0) close(file);
  if (all_mapped) {
    return std::unique_ptr<SharedMemory>(new SharedMemory(static_cast<std::byte*>(data), bytes));
  }
  if (is_mapped) munmap(data, static_cast<std::size_t>(bytes));
  return nullptr;
}

SharedMemory::~SharedMemory() {
  munmap(data_, static_cast<std::size_t>(bytes_));
}

}  // namespace airmoe::comm
