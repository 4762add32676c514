#pragma once
// Sparse exchange by MPI's neighbourhood collectives.
//
// The first message between each pair travels in MPI_Ineighbor_alltoallw, sizes before it in
// MPI_Ineighbor_alltoall. A graph whose edges include all pairs of an exchange serves it, so a few
// graphs are kept; all ranks agree by one reduction on which. When none serves, the receivers find
// their senders by NBX, and a new graph replaces the oldest.

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "comm/src/mpi_exchange.hpp"
#include "comm/src/sparse/arrival_list.hpp"
#include "comm/src/sparse/nbx.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

class NeighbourRoute final : public SparseRoute {
 public:
  /// Uses kTags tags from `first_tag` on.
  static constexpr int kTags = 4;
  NeighbourRoute(const SparseLink& link, int first_tag);
  ~NeighbourRoute() override;

  void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) override;

 private:
  static constexpr std::size_t kMostGraphs = 4;
  struct Graph {
    MPI_Comm comm = MPI_COMM_NULL;
    std::vector<int> receivers;  // ascending
    std::vector<int> senders;    // ascending
  };
  // What one neighbour sends: its number of messages, and the bytes of the first.
  struct Sizes {
    int64_t num_messages;
    int64_t first_bytes;
  };

  void find_peers(std::span<const ByteSend> sends);
  Graph& agree_on_graph(const char* phase);
  void make_graph(Graph& graph, const char* phase);
  // Fills the sizes that go out, the first message to each receiver, and what is sent after these.
  void prepare(const Graph& graph, std::span<const ByteSend> sends);
  void exchange_sizes(Graph& graph, const char* phase);
  void receive_other_sizes(const Graph& graph, const char* phase);
  void add_arrivals(const Graph& graph);
  void exchange_first_messages(Graph& graph, const char* phase);
  // The part of a message that travels in the collective.
  int first_part(int64_t bytes) const {
    return static_cast<int>(std::min(bytes, link_.max_message_bytes));
  }

  SparseLink link_;
  int data_tag_;
  NbxRoute find_senders_;
  std::array<Graph, kMostGraphs> graphs_;
  std::size_t oldest_ = 0;
  std::vector<int> peers_;              // receivers of this exchange, ascending
  std::vector<Sizes> out_sizes_;        // by receiver of the graph
  std::vector<Sizes> in_sizes_;         // by sender of the graph
  std::vector<const ByteSend*> first_;  // message by receiver of the graph
  std::vector<std::size_t> next_size_;  // by receiver: where its next size goes
  std::vector<int64_t> other_out_;      // sizes of the messages after the first, by receiver
  std::vector<int64_t> other_in_;       // the same by sender
  std::vector<ByteSend> sends_after_;
  std::vector<ByteRecv> recvs_after_;
  MpiExchange sent_after_;
  MpiExchange received_after_;
  std::vector<int> send_counts_, recv_counts_;
  std::vector<MPI_Aint> send_places_, recv_places_;
  std::vector<MPI_Datatype> types_;
  ByteInbox senders_;
  ArrivalList messages_;
};

}  // namespace airmoe::comm
