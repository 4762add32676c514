#pragma once
// Counts what a rank sends to other ranks, by phase.

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/forwarding_communicator.hpp"

namespace airmoe::comm {

/// Payload only: what MPI, TCP and the 8-byte headers of a sparse exchange add is not counted, nor
/// is the cutting of long messages into pieces.
struct PhaseStats {
  int64_t calls = 0;          ///< calls of any verb
  int64_t bytes_sent = 0;     ///< to other ranks
  int64_t messages_sent = 0;  ///< to other ranks, none of them empty
  double seconds = 0;         ///< inside calls and in Ticket::wait() and test()
};

/// Exact for exchange, sparse_exchange, all_to_all_v, gather_v (the ranks below the root send once)
/// and floating-point all_reduce (the ordered algorithm's own traffic). all_gather and all_gather_v
/// count one message to each other rank, which holds as a mean over the ranks for any algorithm
/// that sends no byte twice. Where MPI's algorithm decides, the payload is counted once: at the
/// root of a broadcast, and at every rank of an integer all_reduce. A barrier counts no bytes.
class StatsCommunicator final : public ForwardingCommunicator {
 public:
  using Stats = std::map<std::string, PhaseStats, std::less<>>;

  explicit StatsCommunicator(Communicator& inner);
  ~StatsCommunicator() override;

  /// Local. By phase, since construction or reset(). The reference stays valid.
  const Stats& stats() const { return stats_; }
  /// Local. One phase; zeros when it has not occurred.
  PhaseStats stats(std::string_view phase) const;
  /// Local. Sets all counts to zero; phases that occurred stay in the map. Tickets under way count
  /// on.
  void reset();

 private:
  class CountedExchange;
  class Timer;

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
  void do_set_phase(const char* phase) override;

  void count_sends(std::span<const ByteSend> sends);
  void count_to_all_others(int64_t bytes);
  CountedExchange& idle_exchange();
  PhaseStats& current();

  Stats stats_;
  PhaseStats* current_ = nullptr;  // of the phase set last; null until its first call
  std::vector<std::unique_ptr<CountedExchange>> exchanges_;
};

}  // namespace airmoe::comm
