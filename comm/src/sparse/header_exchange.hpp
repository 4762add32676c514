#pragma once
// Sparse exchange among a fixed set of ranks, each of which tells every other in a header what it
// sends. Short data travels in the header. With all ranks as peers: the algorithm `pairwise`.

#include <memory>
#include <vector>

#include "comm/src/mpi_exchange.hpp"
#include "comm/src/sparse/arrival_list.hpp"
#include "comm/src/sparse/header_carrier.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

class HeaderExchange final : public SparseRoute {
 public:
  /// Peers are ranks of the link without this one, in the order of the carrier; rank a is a receive
  /// peer of b where b is a send peer of a. `data_tag` is that of long data.
  HeaderExchange(const SparseLink& link, std::unique_ptr<HeaderCarrier> carrier,
                 std::span<const int> send_peers, std::span<const int> recv_peers, int data_tag);

  /// Collective over the peers. Messages go to send peers and to oneself.
  void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) override;

 private:
  // A header is num_messages, then the size of each where they fit, then the data of all where that
  // fits too. Else sizes, then data, follow as messages.
  struct Outgoing {
    int64_t num_messages;
    int64_t bytes;    // of all of them
    int64_t* sizes;   // where the next one goes
    std::byte* data;  // where the next one goes; null: it follows
  };
  bool sizes_fit(int64_t num_messages) const;
  bool data_fits(int64_t num_messages, int64_t bytes) const;
  void write_headers(std::span<const ByteSend> sends);
  void read_headers(const char* phase);
  void add_arrivals(std::size_t peer, const int64_t* sizes, int64_t num_messages,
                    const std::byte* header_data);

  SparseLink link_;
  std::unique_ptr<HeaderCarrier> carrier_;
  std::vector<int> send_peers_;
  std::vector<int> recv_peers_;
  std::vector<int> place_of_rank_;  // in send_peers_; -1: not one
  int data_tag_;
  MpiExchange sent_after_;
  MpiExchange received_after_;
  std::vector<Outgoing> outgoing_;
  std::vector<int64_t> header_bytes_;
  std::vector<ByteSend> following_;
  std::vector<int64_t> following_sizes_;  // lists of sizes that fit no header
  std::vector<int64_t> incoming_sizes_;
  std::vector<ByteRecv> size_recvs_;
  ArrivalList messages_;
};

}  // namespace airmoe::comm
