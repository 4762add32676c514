#include "comm/src/sparse/header_messages.hpp"

#include <utility>

namespace airmoe::comm {

HeaderMessages::HeaderMessages(const SparseLink& link, std::vector<int> send_peers,
                               std::vector<int> recv_peers, int64_t slot_bytes, int tag)
    : send_peers_(std::move(send_peers)),
      recv_peers_(std::move(recv_peers)),
      slot_bytes_(slot_bytes),
      tag_(tag),
      exchange_(link.comm, link.wait, slot_bytes),
      out_(slot_bytes * std::ssize(send_peers_)),
      in_(slot_bytes * std::ssize(recv_peers_)),
      received_(recv_peers_.size()) {
  for (std::size_t i = 0; i < recv_peers_.size(); ++i) {
    recvs_.push_back({recv_peers_[i],
                      {in_.data() + static_cast<int64_t>(i) * slot_bytes_,
                       static_cast<std::size_t>(slot_bytes_)}});
  }
}

void HeaderMessages::publish(std::span<const int64_t> bytes, const char* phase) {
  sends_.clear();
  for (std::size_t i = 0; i < send_peers_.size(); ++i) {
    sends_.push_back({send_peers_[i], {outgoing(i), static_cast<std::size_t>(bytes[i])}});
  }
  exchange_.start(sends_, recvs_, tag_, phase, kSparseOperation, received_);
  ticket_ = Ticket(&exchange_);
}

void HeaderMessages::wait(const char*) {
  ticket_.wait();
}

}  // namespace airmoe::comm
