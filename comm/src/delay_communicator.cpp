#include "comm/delay_communicator.hpp"

#include <thread>

namespace airmoe::comm {

void DelayCommunicator::sleep() const {
  std::this_thread::sleep_for(delay_);
}

void DelayCommunicator::do_barrier() {
  sleep();
  ForwardingCommunicator::do_barrier();
}

void DelayCommunicator::do_broadcast(Bytes data, int root) {
  sleep();
  ForwardingCommunicator::do_broadcast(data, root);
}

void DelayCommunicator::do_all_reduce(void* data, int64_t count, DType type, Reduction op) {
  sleep();
  ForwardingCommunicator::do_all_reduce(data, count, type, op);
}

void DelayCommunicator::do_all_gather(ConstBytes send, Bytes recv) {
  sleep();
  ForwardingCommunicator::do_all_gather(send, recv);
}

void DelayCommunicator::do_all_gather_v(ConstBytes send, Bytes recv,
                                        std::span<const int64_t> counts, int64_t element_bytes) {
  sleep();
  ForwardingCommunicator::do_all_gather_v(send, recv, counts, element_bytes);
}

void DelayCommunicator::do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                    int64_t element_bytes, int root) {
  sleep();
  ForwardingCommunicator::do_gather_v(send, recv, counts, element_bytes, root);
}

void DelayCommunicator::do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts,
                                        Bytes recv, std::span<const int64_t> recv_counts,
                                        int64_t element_bytes) {
  sleep();
  ForwardingCommunicator::do_all_to_all_v(send, send_counts, recv, recv_counts, element_bytes);
}

Ticket DelayCommunicator::do_exchange(std::span<const ByteSend> sends,
                                      std::span<const ByteRecv> recvs, int tag) {
  sleep();
  return ForwardingCommunicator::do_exchange(sends, recvs, tag);
}

void DelayCommunicator::do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) {
  sleep();
  ForwardingCommunicator::do_sparse_exchange(sends, inbox);
}

}  // namespace airmoe::comm
