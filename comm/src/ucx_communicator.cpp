#include "comm/src/ucx_communicator.hpp"

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"

namespace airmoe::comm {

namespace {

const UcxOptions& checked(const UcxOptions& options) {
  AIRMOE_CHECK(options.max_message_bytes >= 8, "max_message_bytes is {}, not at least 8",
               options.max_message_bytes);
  AIRMOE_CHECK(options.deadline_seconds > 0, "deadline_seconds is {}, not above 0",
               options.deadline_seconds);
  AIRMOE_CHECK(options.ranks_per_node >= 0, "ranks_per_node is {}, below 0",
               options.ranks_per_node);
  return options;
}

}  // namespace

UcxCommunicator::UcxCommunicator(const UcxOptions& options)
    : worker_(MPI_COMM_WORLD, checked(options)),
      max_message_bytes_(options.max_message_bytes),
      barrier_(worker_),
      sparse_(worker_, barrier_, max_message_bytes_) {}

void UcxCommunicator::do_barrier() {
  worker_.check_usable();
  worker_.guarded([this] { barrier_.start(); });
  worker_.wait_until(
      phase(), "barrier", [this] { return barrier_.advance(); },
      [this] { return barrier_.missing(); });
}

void UcxCommunicator::do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                  int64_t element_bytes, int root) {
  clear_messages();
  if (!send.empty()) sends_.push_back({root, send});
  if (rank() == root) add_recvs(recv, counts, element_bytes);
  run_exchange("gather_v");
}

void UcxCommunicator::do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts,
                                      Bytes recv, std::span<const int64_t> recv_counts,
                                      int64_t element_bytes) {
  clear_messages();
  add_sends(send, send_counts, element_bytes);
  add_recvs(recv, recv_counts, element_bytes);
  run_exchange("all_to_all_v");
}

Ticket UcxCommunicator::do_exchange(std::span<const ByteSend> sends,
                                    std::span<const ByteRecv> recvs, int tag) {
  UcxExchange& exchange = idle_exchange();
  exchange.start(sends, recvs, kFirstUserChannel + static_cast<uint32_t>(tag), phase(), "exchange");
  return Ticket(&exchange);
}

void UcxCommunicator::do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) {
  worker_.check_usable();
  sparse_.run(sends, inbox, phase());
}

void UcxCommunicator::clear_messages() {
  sends_.clear();
  recvs_.clear();
}

void UcxCommunicator::set_offsets(std::span<const int64_t> counts, int64_t element_bytes) {
  offsets_.assign(1, 0);
  for (const int64_t count : counts) offsets_.push_back(offsets_.back() + count * element_bytes);
}

Bytes UcxCommunicator::part(Bytes all, int rank) const {
  return all.subspan(static_cast<std::size_t>(offsets_[rank]),
                     static_cast<std::size_t>(offsets_[rank + 1] - offsets_[rank]));
}

// Starting with the next rank, so that not all send to rank 0 first.
void UcxCommunicator::add_sends(ConstBytes data, std::span<const int64_t> counts,
                                int64_t element_bytes) {
  set_offsets(counts, element_bytes);
  for (int i = 1; i <= size(); ++i) {
    const int peer = (rank() + i) % size();
    if (counts[peer] == 0) continue;
    sends_.push_back({peer, data.subspan(static_cast<std::size_t>(offsets_[peer]),
                                         static_cast<std::size_t>(counts[peer] * element_bytes))});
  }
}

void UcxCommunicator::add_recvs(Bytes data, std::span<const int64_t> counts,
                                int64_t element_bytes) {
  set_offsets(counts, element_bytes);
  for (int peer = 0; peer < size(); ++peer) {
    if (counts[peer] > 0) recvs_.push_back({peer, part(data, peer)});
  }
}

void UcxCommunicator::run_exchange(const char* operation) {
  UcxExchange& exchange = idle_exchange();
  exchange.start(sends_, recvs_, kCollectiveChannel, phase(), operation);
  Ticket(&exchange).wait();
}

UcxExchange& UcxCommunicator::idle_exchange() {
  for (auto& exchange : exchanges_) {
    if (exchange->idle()) return *exchange;
  }
  exchanges_.push_back(std::make_unique<UcxExchange>(worker_, max_message_bytes_));
  return *exchanges_.back();
}

bool has_ucx() {
  return true;
}

std::string ucx_library_version() {
  return ucp_get_version_string();
}

std::unique_ptr<Communicator> make_ucx_communicator(const UcxOptions& options) {
  return std::make_unique<UcxCommunicator>(options);
}

}  // namespace airmoe::comm
