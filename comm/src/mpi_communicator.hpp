#pragma once

#include <memory>
#include <vector>

#include <mpi.h>

#include "comm/mpi_backend.hpp"
#include "comm/src/mpi_check.hpp"
#include "comm/src/mpi_exchange.hpp"
#include "comm/src/mpi_sparse_exchange.hpp"

namespace airmoe::comm {

/// Broadcasts, integer reductions and short all-gathers are MPI's non-blocking collectives;
/// everything else is point to point, which MPI's own irregular collectives are as well, without
/// their limits on counts, and which lets a wait name the peers it misses.
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm parent, const MpiOptions& options);
  ~MpiCommunicator() override;

  int rank() const override { return context_.rank; }
  int size() const override { return size_; }

 private:
  void do_barrier() override;
  void do_broadcast(Bytes data, int root) override;
  void do_all_reduce(void* data, int64_t count, DType type, Reduction op) override;
  void do_all_gather(ConstBytes send, Bytes recv) override;
  void do_all_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                       int64_t element_bytes) override;
  void do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                   int64_t element_bytes, int root) override;
  void do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts, Bytes recv,
                       std::span<const int64_t> recv_counts, int64_t element_bytes) override;
  Ticket do_exchange(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                     int tag) override;
  void do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) override;

  void wait(MPI_Request* request, const char* operation);
  void all_reduce_integers(std::byte* data, int64_t count, DType type, Reduction op);
  void all_reduce_in_order(std::byte* data, int64_t count, DType type, Reduction op);
  // Adds to sends_/recvs_ one message per rank of a contiguous array, in rank order.
  void add_sends(ConstBytes data, std::span<const int64_t> counts, int64_t element_bytes);
  void add_recvs(Bytes data, std::span<const int64_t> counts, int64_t element_bytes);
  void clear_messages();
  // Exchanges sends_ and recvs_, to the end.
  void run_exchange(const char* operation);
  MpiExchange& idle_exchange();

  MPI_Comm comm_ = MPI_COMM_NULL;
  WaitContext context_;
  int size_ = 1;
  int64_t max_message_bytes_;
  std::vector<std::unique_ptr<MpiExchange>> exchanges_;  // grows to the most under way at once
  std::unique_ptr<SparseRoute> sparse_;
  std::vector<ByteSend> sends_;
  std::vector<ByteRecv> recvs_;
  std::vector<int> int_counts_;
  std::vector<int> int_offsets_;
  std::vector<int64_t> part_counts_;
  Buffer<std::byte> scratch_;
};

}  // namespace airmoe::comm
