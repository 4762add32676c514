#include "apps/bench/alltoallv.hpp"

#include <climits>

#include "comm/base/error.hpp"
#include "comm/mpi_backend.hpp"

namespace airmoe::bench {
namespace {

void check(int code, const char* call) {
  AIRMOE_CHECK(code == MPI_SUCCESS, "{} ended with code {}", call, code);
}

// Counts and offsets of messages of `bytes` from or to `peers`, packed; returns their total.
int64_t lay_out(std::span<const int> peers, int64_t bytes, std::vector<int>& counts,
                std::vector<int>& offsets) {
  int64_t total = 0;
  for (const int peer : peers) {
    counts[peer] = static_cast<int>(bytes);
    offsets[peer] = static_cast<int>(total);
    total += bytes;
  }
  AIRMOE_CHECK(total <= INT_MAX, "{} bytes of messages of one rank are beyond MPI_Alltoallv",
               total);
  return total;
}

}  // namespace

Alltoallv::Alltoallv(int ranks, int64_t bytes, std::span<const int> receivers,
                     std::span<const int> senders)
    : bytes_(bytes),
      send_counts_(static_cast<std::size_t>(ranks)),
      recv_counts_(send_counts_.size()),
      send_offsets_(send_counts_.size()),
      recv_offsets_(send_counts_.size()) {
  send_.resize(static_cast<std::size_t>(lay_out(receivers, bytes, send_counts_, send_offsets_)));
  recv_.resize(static_cast<std::size_t>(lay_out(senders, bytes, recv_counts_, recv_offsets_)));
}

std::span<uint8_t> Alltoallv::message_to(int rank) {
  return {send_.data() + send_offsets_[rank], static_cast<std::size_t>(bytes_)};
}

std::span<const uint8_t> Alltoallv::message_from(int rank) const {
  return {recv_.data() + recv_offsets_[rank], static_cast<std::size_t>(bytes_)};
}

void Alltoallv::run() {
  check(
      MPI_Alltoallv(send_.data(), send_counts_.data(), send_offsets_.data(), MPI_BYTE, recv_.data(),
                    recv_counts_.data(), recv_offsets_.data(), MPI_BYTE, MPI_COMM_WORLD),
      "MPI_Alltoallv");
}

void Alltoallv::run_with_sizes() {
  check(MPI_Alltoall(send_counts_.data(), 1, MPI_INT, recv_counts_.data(), 1, MPI_INT,
                     MPI_COMM_WORLD),
        "MPI_Alltoall");
  int offset = 0;
  for (std::size_t r = 0; r < recv_counts_.size(); ++r) {
    recv_offsets_[r] = offset;
    offset += recv_counts_[r];
  }
  run();
}

}  // namespace airmoe::bench
