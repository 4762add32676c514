#pragma once
// The baseline: MPI's own collectives, called as a program without airmoe would.

#include <cstdint>
#include <span>
#include <vector>

namespace airmoe::bench {

/// Sends `bytes` bytes to each of `receivers` and gets as many from each of `senders`.
class Alltoallv {
 public:
  Alltoallv(int ranks, int64_t bytes, std::span<const int> receivers, std::span<const int> senders);

  /// Memory of the message to, or from, a rank. Shape: [bytes]
  std::span<uint8_t> message_to(int rank);
  std::span<const uint8_t> message_from(int rank) const;

  /// Collective: MPI_Alltoallv with the sizes known on both sides.
  void run();
  /// Collective: first the sizes by MPI_Alltoall, as receivers that do not know them must.
  void run_with_sizes();

 private:
  int64_t bytes_;
  std::vector<int> send_counts_, recv_counts_, send_offsets_, recv_offsets_;
  std::vector<uint8_t> send_, recv_;
};

}  // namespace airmoe::bench
