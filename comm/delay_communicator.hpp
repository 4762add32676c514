#pragma once
// For tests: makes this rank late.

#include <chrono>

#include "comm/forwarding_communicator.hpp"

namespace airmoe::comm {

/// Sleeps for `delay` before every call that moves data or synchronises.
class DelayCommunicator final : public ForwardingCommunicator {
 public:
  DelayCommunicator(Communicator& inner, std::chrono::microseconds delay)
      : ForwardingCommunicator(inner), delay_(delay) {}

 private:
  void do_barrier() override;
  void do_broadcast(Bytes data, int root) override;
  void do_all_reduce(void* data, int64_t count, DType type, Reduction op) override;
  void do_all_gather(ConstBytes send, Bytes recv) override;
  void do_all_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                       int64_t element_bytes) override;
  void do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                   int64_t element_bytes, int root) override;
  void do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts, Bytes recv,
                       std::span<const int64_t> recv_counts, int64_t element_bytes) override;
  Ticket do_exchange(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                     int tag) override;
  void do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) override;

  void sleep() const;

  std::chrono::microseconds delay_;
};

}  // namespace airmoe::comm
