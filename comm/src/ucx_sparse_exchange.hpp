#pragma once
// Sparse exchange by non-blocking consensus, as in mpi_sparse_exchange.hpp, on UCX.
//
// Each message starts with a header, which carries the data too when that is short; the receiver
// answers it. (UCX's own synchronous sends are not meant for endpoints with error handling.) A rank
// whose headers have all been answered enters a barrier that does not block; when the barrier ends,
// no header is left anywhere. Long data is offered right behind its header and fetched after the
// barrier, when all sizes and thus all places in the inbox are known.

#include <array>
#include <vector>

#include "comm/src/sparse/arrival_list.hpp"
#include "comm/src/ucx_barrier.hpp"
#include "comm/src/ucx_exchange.hpp"

namespace airmoe::comm {

class UcxSparseExchange {
 public:
  UcxSparseExchange(UcxWorker& worker, UcxBarrier& barrier, int64_t max_message_bytes);
  ~UcxSparseExchange();

  void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase);

 private:
  struct Header {
    int64_t bytes;
  };
  // Where headers of every second exchange arrive: a rank that has left the barrier may send those
  // of its next exchange to one that has not. One receive is always posted.
  struct Mailbox {
    explicit Mailbox(UcxWorker& worker) : posted(worker) {}
    uint32_t channel = 0;
    UcxOperations posted;
    std::vector<Buffer<std::byte>> slots;  // addresses stay while more slots come
    std::size_t used = 0;                  // the last one of these is posted
  };
  void post(Mailbox& box);
  void send_headers(std::span<const ByteSend> sends);
  void receive_headers();
  bool consensus();
  std::string missing() const;

  UcxWorker& worker_;
  UcxBarrier& barrier_;
  int64_t max_short_bytes_;
  std::array<Mailbox, 2> boxes_;
  std::size_t turn_ = 0;  // of the mailboxes
  bool in_barrier_ = false;
  const char* phase_ = "";
  UcxOperations headers_;  // sends of headers, receives of their answers
  UcxOperations answers_;  // to headers of others
  UcxExchange long_sends_;
  UcxExchange long_recvs_;
  std::byte answer_in_{};
  std::byte answer_out_{};
  Buffer<std::byte> outgoing_;  // headers and short data
  ArrivalList messages_;        // messages of one source arrive in the order they were sent
  std::vector<ByteSend> long_data_;
};

}  // namespace airmoe::comm
