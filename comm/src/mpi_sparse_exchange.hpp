#pragma once
// Sparse exchange by non-blocking consensus: T. Hoefler, C. Siebert, A. Lumsdaine, "Scalable
// communication protocols for dynamic sparse data exchange", PPoPP 2010 (the algorithm called NBX).
//
// Each message starts with a synchronous header, which carries the data too when that is short.
// A rank whose headers have all been received enters a barrier that does not block; when the
// barrier ends, no header is left anywhere, and long data follows with sizes known on both sides.

#include <array>
#include <vector>

#include <mpi.h>

#include "comm/message.hpp"
#include "comm/src/mpi_exchange.hpp"

namespace airmoe::comm {

class MpiSparseExchange {
 public:
  MpiSparseExchange(MPI_Comm comm, const WaitContext& context, int64_t max_message_bytes);

  /// `header_tags` are two tags used in turn: a rank that has left the barrier may send the headers
  /// of its next exchange to one that has not. `data_tag` is that of long data.
  void run(std::span<const ByteSend> sends, ByteInbox& inbox, std::array<int, 2> header_tags,
           int data_tag, const char* phase);

 private:
  struct Header {
    int64_t bytes;
  };
  struct Message {
    int source;
    std::size_t order;  // of arrival: messages of one source arrive in the order they were sent
    int64_t bytes;
    const std::byte* short_data;  // null: long data follows
  };
  void send_headers(std::span<const ByteSend> sends);
  void receive_headers(Deadline& deadline);
  bool headers_sent();
  void collect(std::span<const ByteSend> sends, ByteInbox& inbox, int data_tag);
  std::string unfinished_peers();
  std::byte* next_slot();

  MPI_Comm comm_;
  const WaitContext& context_;
  int64_t max_short_bytes_;
  int turn_ = 0;
  int header_tag_ = 0;
  const char* phase_ = "";
  MpiExchange long_data_;
  Buffer<std::byte> outgoing_;     // headers and short data
  std::vector<int> header_peers_;  // peer of each request
  std::vector<MPI_Request> header_requests_;
  std::vector<Buffer<std::byte>> slots_;  // what arrived; addresses stay while more slots come
  std::size_t used_slots_ = 0;
  std::vector<Message> messages_;
  std::vector<ByteSend> long_sends_;
  std::vector<ByteRecv> long_recvs_;
};

}  // namespace airmoe::comm
