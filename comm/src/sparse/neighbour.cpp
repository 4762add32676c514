#include "comm/src/sparse/neighbour.hpp"

#include <exception>

namespace airmoe::comm {
namespace {

/// MPI wants addresses of arrays that have no element, too.
template <class T>
void resize_at_least_one(std::vector<T>& v, std::size_t size) {
  v.resize(std::max<std::size_t>(size, 1));
}

std::size_t place_in(const std::vector<int>& sorted, int value) {
  return static_cast<std::size_t>(std::lower_bound(sorted.begin(), sorted.end(), value) -
                                  sorted.begin());
}

MPI_Aint address_of(const void* data) {
  MPI_Aint address = 0;
  mpi_check(MPI_Get_address(data, &address), "MPI_Get_address");
  return address;
}

}  // namespace

NeighbourRoute::NeighbourRoute(const SparseLink& link, int first_tag)
    : link_(link),
      data_tag_(first_tag + 3),
      find_senders_(link, {first_tag, first_tag + 1}, first_tag + 2),
      sent_after_(link.comm, link.wait, link.max_message_bytes),
      received_after_(link.comm, link.wait, link.max_message_bytes) {}

NeighbourRoute::~NeighbourRoute() {
  int ended = 0;
  MPI_Finalized(&ended);
  if (ended != 0 || std::uncaught_exceptions() > 0) return;
  for (Graph& graph : graphs_) {
    if (graph.comm != MPI_COMM_NULL) MPI_Comm_free(&graph.comm);
  }
}

void NeighbourRoute::run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) {
  find_peers(sends);
  Graph& graph = agree_on_graph(phase);
  prepare(graph, sends);
  exchange_sizes(graph, phase);
  sent_after_.start(sends_after_, {}, data_tag_, phase, kSparseOperation);
  Ticket sending(&sent_after_);
  receive_other_sizes(graph, phase);
  messages_.clear();
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) messages_.add(s.peer, std::ssize(s.data), s.data.data());
  }
  add_arrivals(graph);
  messages_.lay_out(inbox);
  exchange_first_messages(graph, phase);
  received_after_.start({}, recvs_after_, data_tag_, phase, kSparseOperation);
  Ticket(&received_after_).wait();
  sending.wait();
}

void NeighbourRoute::find_peers(std::span<const ByteSend> sends) {
  peers_.clear();
  for (const ByteSend& s : sends) {
    if (s.peer != link_.rank()) peers_.push_back(s.peer);
  }
  std::sort(peers_.begin(), peers_.end());
  peers_.erase(std::unique(peers_.begin(), peers_.end()), peers_.end());
}

NeighbourRoute::Graph& NeighbourRoute::agree_on_graph(const char* phase) {
  uint32_t serving = 0;  // bit i: graph i has all peers, on every rank
  for (std::size_t i = 0; i < kMostGraphs; ++i) {
    const Graph& graph = graphs_[i];
    if (graph.comm != MPI_COMM_NULL && std::includes(graph.receivers.begin(), graph.receivers.end(),
                                                     peers_.begin(), peers_.end())) {
      serving |= 1u << i;
    }
  }
  MPI_Request request = MPI_REQUEST_NULL;
  mpi_check(MPI_Iallreduce(MPI_IN_PLACE, &serving, 1, MPI_UINT32_T, MPI_BAND, link_.comm, &request),
            "MPI_Iallreduce");
  wait_collective(&request, link_.wait, phase, kSparseOperation);
  for (std::size_t i = 0; i < kMostGraphs; ++i) {
    if ((serving >> i & 1u) != 0) return graphs_[i];
  }
  Graph& graph = graphs_[oldest_];
  oldest_ = (oldest_ + 1) % kMostGraphs;
  make_graph(graph, phase);
  return graph;
}

void NeighbourRoute::make_graph(Graph& graph, const char* phase) {
  if (graph.comm != MPI_COMM_NULL) mpi_check(MPI_Comm_free(&graph.comm), "MPI_Comm_free");
  constexpr std::byte kHello{1};
  sends_after_.clear();
  for (const int peer : peers_) sends_after_.push_back({peer, {&kHello, 1}});
  find_senders_.run(sends_after_, senders_, phase);
  graph.receivers = peers_;
  graph.senders.clear();
  for (const Arrival& a : senders_.arrivals) graph.senders.push_back(a.source);
  mpi_check(MPI_Dist_graph_create_adjacent(
                link_.comm, static_cast<int>(graph.senders.size()), graph.senders.data(),
                MPI_UNWEIGHTED, static_cast<int>(graph.receivers.size()), graph.receivers.data(),
                MPI_UNWEIGHTED, MPI_INFO_NULL, 0, &graph.comm),
            "MPI_Dist_graph_create_adjacent");
  mpi_check(MPI_Comm_set_errhandler(graph.comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

void NeighbourRoute::prepare(const Graph& graph, std::span<const ByteSend> sends) {
  const std::size_t receivers = graph.receivers.size();
  resize_at_least_one(out_sizes_, receivers);
  std::fill(out_sizes_.begin(), out_sizes_.end(), Sizes{});
  first_.resize(receivers);
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) continue;
    const std::size_t i = place_in(graph.receivers, s.peer);
    if (out_sizes_[i].num_messages++ > 0) continue;
    out_sizes_[i].first_bytes = std::ssize(s.data);
    first_[i] = &s;
  }
  std::size_t others = 0;
  next_size_.resize(receivers);
  for (std::size_t i = 0; i < receivers; ++i) {
    next_size_[i] = others;
    others += static_cast<std::size_t>(std::max<int64_t>(out_sizes_[i].num_messages - 1, 0));
  }
  other_out_.resize(others);
  sends_after_.clear();
  for (std::size_t i = 0; i < receivers; ++i) {
    const int64_t n = out_sizes_[i].num_messages;
    if (n == 0) continue;
    if (n > 1) {
      const auto list = std::span<const int64_t>(other_out_)
                            .subspan(next_size_[i], static_cast<std::size_t>(n - 1));
      sends_after_.push_back({graph.receivers[i], as_bytes(list)});
    }
    const auto part = static_cast<std::size_t>(first_part(out_sizes_[i].first_bytes));
    if (part < first_[i]->data.size()) {
      sends_after_.push_back({graph.receivers[i], first_[i]->data.subspan(part)});
    }
  }
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) continue;
    const std::size_t i = place_in(graph.receivers, s.peer);
    if (&s == first_[i]) continue;
    other_out_[next_size_[i]++] = std::ssize(s.data);
    sends_after_.push_back(s);
  }
}

void NeighbourRoute::exchange_sizes(Graph& graph, const char* phase) {
  resize_at_least_one(in_sizes_, graph.senders.size());
  MPI_Request request = MPI_REQUEST_NULL;
  mpi_check(MPI_Ineighbor_alltoall(out_sizes_.data(), 2, MPI_INT64_T, in_sizes_.data(), 2,
                                   MPI_INT64_T, graph.comm, &request),
            "MPI_Ineighbor_alltoall");
  wait_collective(&request, link_.wait, phase, kSparseOperation);
}

void NeighbourRoute::receive_other_sizes(const Graph& graph, const char* phase) {
  std::size_t others = 0;
  for (std::size_t i = 0; i < graph.senders.size(); ++i) {
    others += static_cast<std::size_t>(std::max<int64_t>(in_sizes_[i].num_messages - 1, 0));
  }
  other_in_.resize(others);
  if (others == 0) return;
  recvs_after_.clear();
  std::span<int64_t> rest(other_in_);
  for (std::size_t i = 0; i < graph.senders.size(); ++i) {
    if (in_sizes_[i].num_messages < 2) continue;
    const auto n = static_cast<std::size_t>(in_sizes_[i].num_messages - 1);
    recvs_after_.push_back({graph.senders[i], as_bytes(rest.first(n))});
    rest = rest.subspan(n);
  }
  received_after_.start({}, recvs_after_, data_tag_, phase, kSparseOperation);
  Ticket(&received_after_).wait();
}

void NeighbourRoute::add_arrivals(const Graph& graph) {
  std::size_t other = 0;
  for (std::size_t i = 0; i < graph.senders.size(); ++i) {
    for (int64_t k = 0; k < in_sizes_[i].num_messages; ++k) {
      const int64_t bytes = k == 0 ? in_sizes_[i].first_bytes : other_in_[other++];
      messages_.add(graph.senders[i], bytes, nullptr);
    }
  }
}

void NeighbourRoute::exchange_first_messages(Graph& graph, const char* phase) {
  resize_at_least_one(send_counts_, graph.receivers.size());
  resize_at_least_one(send_places_, graph.receivers.size());
  resize_at_least_one(recv_counts_, graph.senders.size());
  resize_at_least_one(recv_places_, graph.senders.size());
  types_.assign(std::max(send_counts_.size(), recv_counts_.size()), MPI_BYTE);
  for (std::size_t i = 0; i < graph.receivers.size(); ++i) {
    const bool speaks = out_sizes_[i].num_messages > 0;
    send_counts_[i] = speaks ? first_part(out_sizes_[i].first_bytes) : 0;
    send_places_[i] = speaks ? address_of(first_[i]->data.data()) : 0;
  }
  recvs_after_.clear();
  std::size_t next = 0;  // messages that follow, by sender
  for (std::size_t i = 0; i < graph.senders.size(); ++i) {
    recv_counts_[i] = 0;
    recv_places_[i] = 0;
    for (int64_t k = 0; k < in_sizes_[i].num_messages; ++k) {
      ByteRecv message = messages_.following()[next++];
      if (k == 0) {
        recv_counts_[i] = first_part(std::ssize(message.data));
        recv_places_[i] = address_of(message.data.data());
        message.data = message.data.subspan(static_cast<std::size_t>(recv_counts_[i]));
      }
      if (!message.data.empty()) recvs_after_.push_back(message);
    }
  }
  MPI_Request request = MPI_REQUEST_NULL;
  mpi_check(MPI_Ineighbor_alltoallw(MPI_BOTTOM, send_counts_.data(), send_places_.data(),
                                    types_.data(), MPI_BOTTOM, recv_counts_.data(),
                                    recv_places_.data(), types_.data(), graph.comm, &request),
            "MPI_Ineighbor_alltoallw");
  wait_collective(&request, link_.wait, phase, kSparseOperation);
}

}  // namespace airmoe::comm
