#include "comm/src/sparse/node_aware.hpp"

#include <algorithm>
#include <utility>

#include "comm/src/sparse/header_messages.hpp"
#include "comm/src/sparse/node_board.hpp"

namespace airmoe::comm {
namespace {

// A message up to this size shares a message between nodes: beyond it, copying it on both leaders
// costs more than a message of its own.
constexpr int64_t kMostAggregated = int64_t{16} << 10;
constexpr int64_t kMessageSlot = 3584;  // fits the first packet of shared-memory transports
constexpr int64_t kNodeSlot = int64_t{64} << 10;  // of the message between two nodes

std::unique_ptr<HeaderExchange> make_within(const SparseLink& link, const std::vector<int>& ranks,
                                            int first_tag) {
  std::vector<int> peers;
  for (const int rank : ranks) {
    if (rank != link.rank()) peers.push_back(rank);
  }
  std::unique_ptr<HeaderCarrier> carrier = NodeBoard::make(link, ranks, first_tag);
  if (carrier == nullptr) {
    carrier = std::make_unique<HeaderMessages>(link, peers, peers, kMessageSlot, first_tag + 1);
  }
  return std::make_unique<HeaderExchange>(link, std::move(carrier), peers, peers, first_tag + 2);
}

}  // namespace

NodeAwareRoute::NodeAwareRoute(const SparseLink& link, NodeMap nodes, int first_tag)
    : link_(link),
      nodes_(std::move(nodes)),
      my_node_(node_of(link.rank())),
      straight_tag_(first_tag + 5),
      within_(make_within(link, ranks_of(my_node_), first_tag)),
      sent_straight_(link.comm, link.wait, link.max_message_bytes),
      received_straight_(link.comm, link.wait, link.max_message_bytes) {
  std::vector<int> send_peers;
  std::vector<int> recv_peers;
  for (int other = 0; other < nodes_.num_nodes(); ++other) {
    if (other == my_node_ || leader(my_node_, other) != link.rank()) continue;
    // The rank that sends to another node also receives from it.
    send_peers.push_back(leader(other, my_node_));
    recv_peers.push_back(leader(other, my_node_));
  }
  between_ = std::make_unique<HeaderExchange>(
      link,
      std::make_unique<HeaderMessages>(link, send_peers, recv_peers, kNodeSlot, first_tag + 3),
      send_peers, recv_peers, first_tag + 4);
}

bool NodeAwareRoute::goes_straight(int64_t bytes) const {
  return bytes > std::min(kMostAggregated, link_.max_message_bytes);
}

int NodeAwareRoute::first_stop(int receiver) const {
  const int node = node_of(receiver);
  return node == my_node_ ? receiver : leader(my_node_, node);
}

void NodeAwareRoute::run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) {
  if (nodes_.num_nodes() == 1) return within_->run(sends, inbox, phase);
  straight_.clear();
  for (const ByteSend& s : sends) {
    if (s.peer != link_.rank() && goes_straight(std::ssize(s.data))) straight_.push_back(s);
  }
  sent_straight_.start(straight_, {}, straight_tag_, phase, kSparseOperation);
  Ticket sending(&sent_straight_);
  messages_.clear();
  hand_out(sends, phase);
  send_between_nodes(sends, phase);
  spread(phase);
  messages_.lay_out(inbox);
  received_straight_.start({}, messages_.following(), straight_tag_, phase, kSparseOperation);
  Ticket(&received_straight_).wait();
  sending.wait();
}

Parcel NodeAwareRoute::parcel_of(const ByteSend& send) const {
  const int64_t bytes = std::ssize(send.data);
  return {link_.rank(), send.peer, bytes, goes_straight(bytes) ? nullptr : send.data.data()};
}

void NodeAwareRoute::hand_out(std::span<const ByteSend> sends, const char* phase) {
  const auto for_each_to_hand_out = [&](auto&& visit) {
    for (const ByteSend& s : sends) {
      const int stop = first_stop(s.peer);
      if (stop != link_.rank()) visit(place_of(stop), parcel_of(s));
    }
  };
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) messages_.add(s.peer, std::ssize(s.data), s.data.data());
  }
  streams_.clear(ranks_of(my_node_).size());
  for_each_to_hand_out([&](std::size_t place, const Parcel& p) { streams_.announce(place, p); });
  streams_.allocate();
  for_each_to_hand_out([&](std::size_t place, const Parcel& p) { streams_.pack(place, p); });
  move_within(from_within_, phase);
  for_each_parcel(from_within_, [&](const Parcel& p) {
    if (p.receiver == link_.rank()) keep(p);
  });
}

void NodeAwareRoute::send_between_nodes(std::span<const ByteSend> sends, const char* phase) {
  const auto for_each_to_send = [&](auto&& visit) {
    const auto visit_leaving = [&](const Parcel& p) {
      if (node_of(p.receiver) != my_node_) visit(static_cast<std::size_t>(node_of(p.receiver)), p);
    };
    for (const ByteSend& s : sends) {
      if (first_stop(s.peer) == link_.rank()) visit_leaving(parcel_of(s));
    }
    for_each_parcel(from_within_, visit_leaving);
  };
  streams_.clear(nodes_.ranks_of.size());
  for_each_to_send([&](std::size_t node, const Parcel& p) { streams_.announce(node, p); });
  streams_.allocate();
  for_each_to_send([&](std::size_t node, const Parcel& p) { streams_.pack(node, p); });
  moving_.clear();
  for (int node = 0; node < nodes_.num_nodes(); ++node) {
    const ConstBytes stream = streams_.stream(static_cast<std::size_t>(node));
    if (!stream.empty()) moving_.push_back({leader(node, my_node_), stream});
  }
  between_->run(moving_, from_nodes_, phase);
}

void NodeAwareRoute::spread(const char* phase) {
  const auto for_each_of_others = [&](auto&& visit) {
    for_each_parcel(from_nodes_, [&](const Parcel& p) {
      if (p.receiver != link_.rank()) visit(place_of(p.receiver), p);
    });
  };
  for_each_parcel(from_nodes_, [&](const Parcel& p) {
    if (p.receiver == link_.rank()) keep(p);
  });
  streams_.clear(ranks_of(my_node_).size());
  for_each_of_others([&](std::size_t place, const Parcel& p) { streams_.announce(place, p); });
  streams_.allocate();
  for_each_of_others([&](std::size_t place, const Parcel& p) { streams_.pack(place, p); });
  move_within(from_leaders_, phase);
  for_each_parcel(from_leaders_, [&](const Parcel& p) { keep(p); });
}

void NodeAwareRoute::move_within(ByteInbox& inbox, const char* phase) {
  const auto& ranks = ranks_of(my_node_);
  moving_.clear();
  for (std::size_t place = 0; place < ranks.size(); ++place) {
    const ConstBytes stream = streams_.stream(place);
    if (!stream.empty()) moving_.push_back({ranks[place], stream});
  }
  within_->run(moving_, inbox, phase);
}

}  // namespace airmoe::comm
