#pragma once
// Headers as MPI messages.

#include <vector>

#include "comm/src/mpi_exchange.hpp"
#include "comm/src/sparse/header_carrier.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

class HeaderMessages final : public HeaderCarrier {
 public:
  HeaderMessages(const SparseLink& link, std::vector<int> send_peers, std::vector<int> recv_peers,
                 int64_t slot_bytes, int tag);

  int64_t slot_bytes() const override { return slot_bytes_; }
  std::byte* outgoing(std::size_t i) override {
    return out_.data() + static_cast<int64_t>(i) * slot_bytes_;
  }
  void publish(std::span<const int64_t> bytes, const char* phase) override;
  void wait(const char* phase) override;
  ConstBytes incoming(std::size_t i) const override {
    return {in_.data() + static_cast<int64_t>(i) * slot_bytes_,
            static_cast<std::size_t>(received_[i])};
  }

 private:
  std::vector<int> send_peers_;
  std::vector<int> recv_peers_;
  int64_t slot_bytes_;
  int tag_;
  MpiExchange exchange_;
  Ticket ticket_;
  Buffer<std::byte> out_;
  Buffer<std::byte> in_;
  std::vector<int64_t> received_;  // bytes
  std::vector<ByteSend> sends_;
  std::vector<ByteRecv> recvs_;
};

}  // namespace airmoe::comm
