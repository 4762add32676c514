#pragma once
// Base of decorators: passes every call to another communicator.

#include "comm/communicator.hpp"

namespace airmoe::comm {

/// Override what is to be changed and call the base for the rest. The inner communicator outlives
/// it and is not used by others meanwhile (its phase follows the decorator's).
class ForwardingCommunicator : public Communicator {
 public:
  explicit ForwardingCommunicator(Communicator& inner) : inner_(inner) { set_phase(inner.phase()); }
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }

 protected:
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
  void do_set_phase(const char* phase) override;

 private:
  Communicator& inner_;
};

}  // namespace airmoe::comm
