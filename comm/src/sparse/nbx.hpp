#pragma once
// Sparse exchange by non-blocking consensus: T. Hoefler, C. Siebert, A. Lumsdaine, "Scalable
// communication protocols for dynamic sparse data exchange", PPoPP 2010 (the algorithm called NBX).
//
// Each message starts with a synchronous header, which carries the data too when that is short.
// A rank whose headers have all been received enters a barrier that does not block; when the
// barrier ends, no header is left anywhere, and long data follows with sizes known on both sides.

#include <array>
#include <string>
#include <vector>

#include "comm/src/mpi_exchange.hpp"
#include "comm/src/sparse/arrival_list.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

class NbxRoute final : public SparseRoute {
 public:
  /// `header_tags` are two tags used in turn: a rank that has left the barrier may send the headers
  /// of its next exchange to one that has not. `data_tag` is that of long data.
  NbxRoute(const SparseLink& link, std::array<int, 2> header_tags, int data_tag);

  void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) override;

 private:
  struct Header {
    int64_t bytes;
  };
  void send_headers(std::span<const ByteSend> sends);
  void receive_headers(Deadline& deadline);
  bool headers_sent();
  void send_and_receive_long_data(std::span<const ByteSend> sends);
  std::string unfinished_peers();
  std::byte* next_slot();

  SparseLink link_;
  std::array<int, 2> header_tags_;
  int data_tag_;
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
  ArrivalList messages_;
  std::vector<ByteSend> long_sends_;
};

}  // namespace airmoe::comm
