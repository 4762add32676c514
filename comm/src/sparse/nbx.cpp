#include "comm/src/sparse/nbx.hpp"

#include <algorithm>
#include <cstring>
#include <set>

namespace airmoe::comm {
namespace {

// Fits the first packet of shared-memory transports (4 KiB with its header).
constexpr int64_t kShortBytes = 3072;

}  // namespace

NbxRoute::NbxRoute(const SparseLink& link, std::array<int, 2> header_tags, int data_tag)
    : link_(link),
      header_tags_(header_tags),
      data_tag_(data_tag),
      max_short_bytes_(std::min(kShortBytes, link.max_message_bytes)),
      long_data_(link.comm, link.wait, link.max_message_bytes) {}

void NbxRoute::run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) {
  phase_ = phase;
  header_tag_ = header_tags_[static_cast<std::size_t>(turn_)];
  turn_ = 1 - turn_;
  messages_.clear();
  used_slots_ = 0;
  send_headers(sends);

  Deadline deadline(link_.wait);
  MPI_Request barrier = MPI_REQUEST_NULL;
  bool in_barrier = false;
  while (true) {
    receive_headers(deadline);
    if (in_barrier) {
      int done = 0;
      mpi_check(MPI_Test(&barrier, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done != 0) break;
    } else if (headers_sent()) {
      mpi_check(MPI_Ibarrier(link_.comm, &barrier), "MPI_Ibarrier");
      in_barrier = true;
    }
    if (deadline.poll()) {
      deadline.expire(phase_, kSparseOperation,
                      in_barrier ? "some rank (not known which)" : unfinished_peers());
    }
  }
  messages_.lay_out(inbox);
  send_and_receive_long_data(sends);
}

void NbxRoute::send_headers(std::span<const ByteSend> sends) {
  int64_t total = 0;
  for (const ByteSend& s : sends) {
    total += static_cast<int64_t>(sizeof(Header));
    if (std::ssize(s.data) <= max_short_bytes_) total += std::ssize(s.data);
  }
  outgoing_.ensure(total);
  header_peers_.clear();
  header_requests_.clear();
  std::byte* cursor = outgoing_.data();
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) {
      messages_.add(s.peer, std::ssize(s.data), s.data.data());
      continue;
    }
    const Header header{std::ssize(s.data)};
    std::memcpy(cursor, &header, sizeof(Header));
    std::size_t bytes = sizeof(Header);
    if (header.bytes <= max_short_bytes_) {
      std::memcpy(cursor + bytes, s.data.data(), s.data.size());
      bytes += s.data.size();
    }
    header_peers_.push_back(s.peer);
    header_requests_.push_back(MPI_REQUEST_NULL);
    mpi_check(MPI_Issend(cursor, static_cast<int>(bytes), MPI_BYTE, s.peer, header_tag_, link_.comm,
                         &header_requests_.back()),
              "MPI_Issend");
    cursor += bytes;
  }
}

bool NbxRoute::headers_sent() {
  int done = 0;
  mpi_check(MPI_Testall(static_cast<int>(header_requests_.size()), header_requests_.data(), &done,
                        MPI_STATUSES_IGNORE),
            "MPI_Testall");
  return done != 0;
}

std::byte* NbxRoute::next_slot() {
  if (used_slots_ == slots_.size()) {
    slots_.emplace_back(static_cast<int64_t>(sizeof(Header)) + max_short_bytes_);
  }
  return slots_[used_slots_++].data();
}

void NbxRoute::receive_headers(Deadline& deadline) {
  while (true) {
    int found = 0;
    MPI_Message handle = MPI_MESSAGE_NULL;
    MPI_Status status;
    mpi_check(MPI_Improbe(MPI_ANY_SOURCE, header_tag_, link_.comm, &found, &handle, &status),
              "MPI_Improbe");
    if (found == 0) return;
    int bytes = 0;
    mpi_check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    std::byte* slot = next_slot();
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Imrecv(slot, bytes, MPI_BYTE, &handle, &request), "MPI_Imrecv");
    int done = 0;
    while (true) {
      mpi_check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Imrecv");
      if (done != 0) break;
      if (deadline.poll()) {
        deadline.expire(phase_, kSparseOperation,
                        fmt::format("rank {} (to send)", status.MPI_SOURCE));
      }
    }
    Header header{};
    std::memcpy(&header, slot, sizeof(Header));
    const bool is_short = header.bytes <= max_short_bytes_;
    messages_.add(status.MPI_SOURCE, header.bytes, is_short ? slot + sizeof(Header) : nullptr);
  }
}

void NbxRoute::send_and_receive_long_data(std::span<const ByteSend> sends) {
  long_sends_.clear();
  for (const ByteSend& s : sends) {
    if (s.peer != link_.rank() && std::ssize(s.data) > max_short_bytes_) long_sends_.push_back(s);
  }
  long_data_.start(long_sends_, messages_.following(), data_tag_, phase_, kSparseOperation);
  Ticket(&long_data_).wait();
}

std::string NbxRoute::unfinished_peers() {
  std::set<int> peers;
  for (std::size_t i = 0; i < header_requests_.size(); ++i) {
    int done = 0;
    mpi_check(MPI_Test(&header_requests_[i], &done, MPI_STATUS_IGNORE), "MPI_Issend");
    if (done == 0) peers.insert(header_peers_[i]);
  }
  return fmt::format("rank {} (to receive)", fmt::join(peers, ", "));
}

}  // namespace airmoe::comm
