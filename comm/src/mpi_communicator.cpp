#include "comm/src/mpi_communicator.hpp"

#include <algorithm>
#include <climits>
#include <cstring>
#include <exception>

#include "comm/base/error.hpp"

namespace airmoe::comm {
namespace {

// Tags of our own traffic; those of callers come after. Collectives are called in the same order
// everywhere and messages of one tag do not overtake each other, so one tag serves them all.
constexpr int kCollectiveTag = 0;
constexpr int kFirstSparseTag = 1;
constexpr int kFirstUserTag = 16;
static_assert(kFirstSparseTag + kSparseTags <= kFirstUserTag);

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm parent, const MpiOptions& options)
    : max_message_bytes_(options.max_message_bytes) {
  AIRMOE_CHECK(max_message_bytes_ >= 8 && max_message_bytes_ <= INT_MAX - 7,
               "max_message_bytes is {}, not in 8..{}", max_message_bytes_, INT_MAX - 7);
  AIRMOE_CHECK(options.deadline_seconds > 0, "deadline_seconds is {}, not above 0",
               options.deadline_seconds);
  AIRMOE_CHECK(options.ranks_per_node >= 0, "ranks_per_node is {}, below 0",
               options.ranks_per_node);
  mpi_check(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  mpi_check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  mpi_check(MPI_Comm_rank(comm_, &context_.rank), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  context_.deadline_seconds = options.deadline_seconds;
  sparse_ =
      make_sparse_route({comm_, size_, context_, max_message_bytes_}, options, kFirstSparseTag);
}

MpiCommunicator::~MpiCommunicator() {
  int ended = 0;
  MPI_Finalized(&ended);
  if (ended == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

void MpiCommunicator::wait(MPI_Request* request, const char* operation) {
  wait_collective(request, context_, phase(), operation);
}

void MpiCommunicator::do_barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  mpi_check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  wait(&request, "barrier");
}

void MpiCommunicator::do_broadcast(Bytes data, int root) {
  for (int64_t begin = 0; begin < std::ssize(data); begin += max_message_bytes_) {
    const int count = static_cast<int>(std::min(max_message_bytes_, std::ssize(data) - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Ibcast(data.data() + begin, count, MPI_BYTE, root, comm_, &request),
              "MPI_Ibcast");
    wait(&request, "broadcast");
  }
}

void MpiCommunicator::do_all_gather(ConstBytes send, Bytes recv) {
  if (std::ssize(recv) <= max_message_bytes_) {
    if (recv.empty()) return;
    const int count = static_cast<int>(send.size());
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(
        MPI_Iallgather(send.data(), count, MPI_BYTE, recv.data(), count, MPI_BYTE, comm_, &request),
        "MPI_Iallgather");
    return wait(&request, "all_gather");
  }
  clear_messages();
  for (int peer = 0; peer < size_; ++peer) {
    sends_.push_back({peer, send});
    recvs_.push_back({peer, recv.subspan(peer * send.size(), send.size())});
  }
  run_exchange("all_gather");
}

void MpiCommunicator::do_all_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                      int64_t element_bytes) {
  if (std::ssize(recv) <= max_message_bytes_) {
    if (recv.empty()) return;
    int_counts_.resize(counts.size());
    int_offsets_.resize(counts.size());
    int offset = 0;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      int_counts_[r] = static_cast<int>(counts[r] * element_bytes);
      int_offsets_[r] = offset;
      offset += int_counts_[r];
    }
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Iallgatherv(send.data(), static_cast<int>(send.size()), MPI_BYTE, recv.data(),
                              int_counts_.data(), int_offsets_.data(), MPI_BYTE, comm_, &request),
              "MPI_Iallgatherv");
    return wait(&request, "all_gather_v");
  }
  clear_messages();
  for (int peer = 0; peer < size_ && !send.empty(); ++peer) sends_.push_back({peer, send});
  add_recvs(recv, counts, element_bytes);
  run_exchange("all_gather_v");
}

void MpiCommunicator::do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                  int64_t element_bytes, int root) {
  clear_messages();
  if (!send.empty()) sends_.push_back({root, send});
  if (context_.rank == root) add_recvs(recv, counts, element_bytes);
  run_exchange("gather_v");
}

void MpiCommunicator::do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts,
                                      Bytes recv, std::span<const int64_t> recv_counts,
                                      int64_t element_bytes) {
  clear_messages();
  add_sends(send, send_counts, element_bytes);
  add_recvs(recv, recv_counts, element_bytes);
  run_exchange("all_to_all_v");
}

Ticket MpiCommunicator::do_exchange(std::span<const ByteSend> sends,
                                    std::span<const ByteRecv> recvs, int tag) {
  MpiExchange& exchange = idle_exchange();
  exchange.start(sends, recvs, kFirstUserTag + tag, phase(), "exchange");
  return Ticket(&exchange);
}

void MpiCommunicator::do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) {
  sparse_->run(sends, inbox, phase());
}

void MpiCommunicator::clear_messages() {
  sends_.clear();
  recvs_.clear();
}

void MpiCommunicator::add_sends(ConstBytes data, std::span<const int64_t> counts,
                                int64_t element_bytes) {
  std::size_t offset = 0;
  for (int peer = 0; peer < size_; ++peer) {
    const auto bytes = static_cast<std::size_t>(counts[peer] * element_bytes);
    if (bytes > 0) sends_.push_back({peer, data.subspan(offset, bytes)});
    offset += bytes;
  }
}

void MpiCommunicator::add_recvs(Bytes data, std::span<const int64_t> counts,
                                int64_t element_bytes) {
  std::size_t offset = 0;
  for (int peer = 0; peer < size_; ++peer) {
    const auto bytes = static_cast<std::size_t>(counts[peer] * element_bytes);
    if (bytes > 0) recvs_.push_back({peer, data.subspan(offset, bytes)});
    offset += bytes;
  }
}

void MpiCommunicator::run_exchange(const char* operation) {
  MpiExchange& exchange = idle_exchange();
  exchange.start(sends_, recvs_, kCollectiveTag, phase(), operation);
  Ticket(&exchange).wait();
}

MpiExchange& MpiCommunicator::idle_exchange() {
  for (auto& exchange : exchanges_) {
    if (exchange->idle()) return *exchange;
  }
  exchanges_.push_back(std::make_unique<MpiExchange>(comm_, context_, max_message_bytes_));
  return *exchanges_.back();
}

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, const MpiOptions& options) {
  return std::make_unique<MpiCommunicator>(parent, options);
}

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options) {
  return make_mpi_communicator(MPI_COMM_WORLD, options);
}

}  // namespace airmoe::comm
