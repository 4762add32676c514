#pragma once
// Memory that the ranks of one node share.

#include <cstddef>
#include <cstdint>
#include <memory>

#include <mpi.h>

namespace airmoe::comm {

/// Mapped until destroyed; giving it back is local, so a rank that fails holds up no other.
class SharedMemory {
 public:
  /// Collective over `local`, ranks of one machine. Zeroed memory of `bytes`, the same on all; null
  /// on all of them when the system does not allow it on any.
  static std::unique_ptr<SharedMemory> make(MPI_Comm local, int64_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* data() { return data_; }

 private:
  SharedMemory(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_;
  int64_t bytes_;
};

}  // namespace airmoe::comm
