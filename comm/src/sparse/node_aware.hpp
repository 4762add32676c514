#pragma once
// Sparse exchange in steps: within the node, between nodes, within the node.
//
// For each other node one rank of this node leads; which, goes round. A message to another node is
// put into a parcel, handed to the leader for that node, travels in one message from there to the
// rank that leads for this node over there, and is handed to its receiver. Messages too long to
// gain by that go straight to their receivers, only their sizes travel in parcels.
//
// On one node: the first step alone, without parcels.

#include <memory>
#include <vector>

#include "comm/node_map.hpp"
#include "comm/src/mpi_exchange.hpp"
#include "comm/src/sparse/header_exchange.hpp"
#include "comm/src/sparse/parcels.hpp"

namespace airmoe::comm {

class NodeAwareRoute final : public SparseRoute {
 public:
  /// Collective. Uses kTags tags from `first_tag` on.
  static constexpr int kTags = 6;
  NodeAwareRoute(const SparseLink& link, NodeMap nodes, int first_tag);

  void run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) override;

 private:
  int node_of(int rank) const { return nodes_.node_of[static_cast<std::size_t>(rank)]; }
  const std::vector<int>& ranks_of(int node) const {
    return nodes_.ranks_of[static_cast<std::size_t>(node)];
  }
  // The rank of `node` that leads for the node `other`.
  int leader(int node, int other) const {
    const auto& ranks = ranks_of(node);
    return ranks[static_cast<std::size_t>(other) % ranks.size()];
  }
  bool goes_straight(int64_t bytes) const;
  std::size_t place_of(int rank) const {
    return static_cast<std::size_t>(nodes_.place_of[static_cast<std::size_t>(rank)]);
  }
  Parcel parcel_of(const ByteSend& send) const;
  // The rank of this node that a message goes to first: its receiver, or the leader for its node.
  int first_stop(int receiver) const;
  // The three steps. Parcels that have arrived are added to messages_.
  void hand_out(std::span<const ByteSend> sends, const char* phase);
  void send_between_nodes(std::span<const ByteSend> sends, const char* phase);
  void spread(const char* phase);
  void move_within(ByteInbox& inbox, const char* phase);
  void keep(const Parcel& parcel) { messages_.add(parcel.source, parcel.bytes, parcel.data); }

  SparseLink link_;
  NodeMap nodes_;
  int my_node_;
  int straight_tag_;
  std::unique_ptr<HeaderExchange> within_;
  std::unique_ptr<HeaderExchange> between_;
  MpiExchange sent_straight_;
  MpiExchange received_straight_;
  std::vector<ByteSend> straight_;
  ParcelStreams streams_;         // by place in the node, or by node
  std::vector<ByteSend> moving_;  // streams as messages
  ByteInbox from_within_;         // parcels for this rank, and for the nodes it leads for
  ByteInbox from_nodes_;
  ByteInbox from_leaders_;
  ArrivalList messages_;
};

}  // namespace airmoe::comm
