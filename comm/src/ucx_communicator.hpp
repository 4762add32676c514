#pragma once

#include <memory>
#include <vector>

#include "comm/src/ucx_barrier.hpp"
#include "comm/src/ucx_exchange.hpp"
#include "comm/src/ucx_sparse_exchange.hpp"
#include "comm/ucx_communicator.hpp"

namespace airmoe::comm {

/// All verbs are made of exchanges. Since UCX keeps the order of messages of one sender and tag,
/// and collectives are called in the same order everywhere, one channel serves them all.
class UcxCommunicator final : public Communicator {
 public:
  explicit UcxCommunicator(const UcxOptions& options);

  int rank() const override { return worker_.rank(); }
  int size() const override { return worker_.size(); }

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

  // Both leave part r of `all` at bytes offsets_[r] to offsets_[r + 1], this rank's is there.
  void all_gather_short(Bytes all, const char* operation);
  void all_gather_long(Bytes all, const char* operation);
  void all_gather_parts(ConstBytes send, Bytes recv, const char* operation);
  Bytes part(Bytes all, int rank) const;
  void set_offsets(std::span<const int64_t> counts, int64_t element_bytes);
  // One message to `to` and one from `from`, to the end; empty ones are not sent.
  void shift(int to, ConstBytes out, int from, Bytes in, const char* operation);
  // Adds to sends_/recvs_ one message per rank of a contiguous array, the next rank's first.
  void add_sends(ConstBytes data, std::span<const int64_t> counts, int64_t element_bytes);
  void add_recvs(Bytes data, std::span<const int64_t> counts, int64_t element_bytes);
  void clear_messages();
  // Exchanges sends_ and recvs_, to the end.
  void run_exchange(const char* operation);
  UcxExchange& idle_exchange();

  UcxWorker worker_;
  int64_t max_message_bytes_;
  UcxBarrier barrier_;
  UcxSparseExchange sparse_;
  std::vector<std::unique_ptr<UcxExchange>> exchanges_;  // grows to the most under way at once
  std::vector<ByteSend> sends_;
  std::vector<ByteRecv> recvs_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> part_counts_;
  Buffer<std::byte> scratch_;
  Buffer<std::byte> rotated_;
};

}  // namespace airmoe::comm
