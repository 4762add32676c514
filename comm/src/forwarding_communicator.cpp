#include "comm/forwarding_communicator.hpp"

namespace airmoe::comm {

void ForwardingCommunicator::do_barrier() {
  inner_.do_barrier();
}

void ForwardingCommunicator::do_broadcast(Bytes data, int root) {
  inner_.do_broadcast(data, root);
}

void ForwardingCommunicator::do_all_reduce(void* data, int64_t count, DType type, Reduction op) {
  inner_.do_all_reduce(data, count, type, op);
}

void ForwardingCommunicator::do_all_gather(ConstBytes send, Bytes recv) {
  inner_.do_all_gather(send, recv);
}

void ForwardingCommunicator::do_all_gather_v(ConstBytes send, Bytes recv,
                                             std::span<const int64_t> counts,
                                             int64_t element_bytes) {
  inner_.do_all_gather_v(send, recv, counts, element_bytes);
}

void ForwardingCommunicator::do_gather_v(ConstBytes send, Bytes recv,
                                         std::span<const int64_t> counts, int64_t element_bytes,
                                         int root) {
  inner_.do_gather_v(send, recv, counts, element_bytes, root);
}

void ForwardingCommunicator::do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts,
                                             Bytes recv, std::span<const int64_t> recv_counts,
                                             int64_t element_bytes) {
  inner_.do_all_to_all_v(send, send_counts, recv, recv_counts, element_bytes);
}

Ticket ForwardingCommunicator::do_exchange(std::span<const ByteSend> sends,
                                           std::span<const ByteRecv> recvs, int tag) {
  return inner_.do_exchange(sends, recvs, tag);
}

void ForwardingCommunicator::do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) {
  inner_.do_sparse_exchange(sends, inbox);
}

void ForwardingCommunicator::do_set_phase(const char* phase) {
  inner_.set_phase(phase);
}

}  // namespace airmoe::comm
