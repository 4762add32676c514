#pragma once
// Moves elements between ranks. Typed spans outside, bytes only inside a backend.
//
// Collective calls are made by every rank in the same order; counts are elements; all memory is
// host memory of the caller, which must stay valid and (for what is received) unread until the call
// or the ticket has ended. Zero counts and empty spans are normal everywhere.
//
// Every wait has a deadline. When it passes, Error(ExitCode::watchdog) names the rank, the phase,
// the peers still missing where they are known, and the seconds. After that, or after any other
// Error from a call, the communicator is good for nothing but being destroyed and the run should
// end. Wrong arguments (counts that do not add up, a rank out of range) throw
// Error(ExitCode::failure).

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/dtype.hpp"
#include "comm/message.hpp"
#include "comm/ticket.hpp"

namespace airmoe::comm {

enum class Reduction : uint8_t { sum, max, min };

class Communicator {
 public:
  /// Tags of exchange() are 0 to kMaxTag.
  static constexpr int kMaxTag = 32000;

  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// Local: this rank, 0 <= rank() < size().
  virtual int rank() const = 0;
  /// Local: number of ranks.
  virtual int size() const = 0;

  /// Collective. Returns when every rank has called it.
  void barrier() { do_barrier(); }

  /// Collective. `data` of `root` replaces `data` of the others; same size everywhere.
  template <Element T>
  void broadcast(std::span<T> data, int root) {
    check_peer(root, "broadcast");
    do_broadcast(as_bytes(data), root);
  }

  /// Collective. data[i] = sum, max or min of data[i] over all ranks, in place; same size
  /// everywhere. Floating point: reduced in rank order in double precision and rounded once, so
  /// every rank holds the same bits and they do not depend on timing; NaN wins in max and min.
  /// Integer sums wrap.
  template <Element T>
  void all_reduce(std::span<T> data, Reduction op) {
    do_all_reduce(data.data(), std::ssize(data), dtype_of<T>, op);
  }
  /// Collective. The same for one value.
  template <Element T>
  T all_reduce_value(T value, Reduction op) {
    all_reduce(std::span<T>(&value, 1), op);
    return value;
  }

  /// Collective. recv = send of rank 0, of rank 1, ... Shapes: send [n], recv [size(), n].
  template <Element T>
  void all_gather(std::type_identity_t<std::span<const T>> send, std::span<T> recv) {
    check_size(std::ssize(send) * size(), std::ssize(recv), "all_gather: recv");
    do_all_gather(as_bytes(send), as_bytes(recv));
  }

  /// Collective. The same with counts[r] elements from rank r; counts are known on every rank.
  /// Shapes: send [counts[rank()]], recv [sum(counts)], counts [size()].
  template <Element T>
  void all_gather_v(std::type_identity_t<std::span<const T>> send, std::span<T> recv,
                    std::span<const int64_t> counts) {
    check_counts(counts, std::ssize(recv), "all_gather_v: recv");
    check_size(counts[rank()], std::ssize(send), "all_gather_v: send");
    do_all_gather_v(as_bytes(send), as_bytes(recv), counts, sizeof(T));
  }

  /// Collective. The same to `root` only; `recv` is ignored on the other ranks and may be empty
  /// there.
  template <Element T>
  void gather_v(std::type_identity_t<std::span<const T>> send, std::span<T> recv,
                std::span<const int64_t> counts, int root) {
    check_peer(root, "gather_v");
    check_counts(counts, rank() == root ? std::ssize(recv) : -1, "gather_v: recv");
    check_size(counts[rank()], std::ssize(send), "gather_v: send");
    do_gather_v(as_bytes(send), as_bytes(recv), counts, sizeof(T), root);
  }

  /// Collective. send holds send_counts[r] elements for rank r in rank order; recv gets
  /// recv_counts[r] elements from rank r in rank order. Pairs with a zero count cost no message.
  /// Shapes: send [sum(send_counts)], recv [sum(recv_counts)], both counts [size()].
  template <Element T>
  void all_to_all_v(std::type_identity_t<std::span<const T>> send,
                    std::span<const int64_t> send_counts, std::span<T> recv,
                    std::span<const int64_t> recv_counts) {
    check_counts(send_counts, std::ssize(send), "all_to_all_v: send");
    check_counts(recv_counts, std::ssize(recv), "all_to_all_v: recv");
    do_all_to_all_v(as_bytes(send), send_counts, as_bytes(recv), recv_counts, sizeof(T));
  }

  /// Point to point, not collective: starts all messages and returns; the ticket's wait() ends
  /// them. Both sides know the counts: the n-th message from a to b under a tag meets the n-th
  /// receive that b has posted for a under that tag, and a different size is an Error. Messages of
  /// zero elements are not sent; a message to oneself is copied at once and needs its receive in
  /// the same call.
  template <Element T>
  [[nodiscard]] Ticket exchange(std::type_identity_t<std::span<const Send<T>>> sends,
                                std::span<const Recv<T>> recvs, int tag) {
    stage(sends, recvs);
    return exchange_staged(tag);
  }

  /// Collective. Sends messages to ranks that do not expect them: only the sender names its peers.
  /// Messages of zero elements are not sent; a message to oneself is copied. `inbox` is replaced by
  /// what arrived, in source order (messages of one source in the order they were sent),
  /// contiguous. A rank returns when it has all its messages, perhaps before others have theirs: no
  /// barrier.
  template <Element T>
  void sparse_exchange(std::type_identity_t<std::span<const Send<T>>> sends, Inbox<T>& inbox) {
    stage<T>(sends, {});
    sparse_exchange_staged(inbox.raw_, sizeof(T));
  }

  /// Local: labels what follows, for errors and statistics; a string literal. See ScopedPhase.
  void set_phase(const char* phase) {
    phase_ = phase;
    do_set_phase(phase);
  }
  const char* phase() const { return phase_; }

 protected:
  Communicator() = default;

 private:
  friend class ForwardingCommunicator;

  // What a backend implements. Sizes and peers are already checked, on this rank.
  virtual void do_barrier() = 0;
  virtual void do_broadcast(Bytes data, int root) = 0;
  virtual void do_all_reduce(void* data, int64_t count, DType type, Reduction op) = 0;
  virtual void do_all_gather(ConstBytes send, Bytes recv) = 0;
  virtual void do_all_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                               int64_t element_bytes) = 0;
  virtual void do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                           int64_t element_bytes, int root) = 0;
  virtual void do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts, Bytes recv,
                               std::span<const int64_t> recv_counts, int64_t element_bytes) = 0;
  // No empty messages; the descriptors need not outlive the call, the memory does.
  virtual Ticket do_exchange(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                             int tag) = 0;
  virtual void do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) = 0;
  virtual void do_set_phase(const char*) {}

  template <class T>
  void stage(std::span<const Send<T>> sends, std::span<const Recv<T>> recvs) {
    sends_.clear();
    recvs_.clear();
    for (const auto& s : sends) {
      if (!s.data.empty()) sends_.push_back({s.peer, as_bytes(s.data)});
    }
    for (const auto& r : recvs) {
      if (!r.data.empty()) recvs_.push_back({r.peer, as_bytes(r.data)});
    }
  }
  Ticket exchange_staged(int tag);
  void sparse_exchange_staged(ByteInbox& inbox, int64_t element_bytes);

  void check_peer(int peer, const char* where) const;
  void check_tag(int tag) const;
  void check_size(int64_t expected, int64_t actual, const char* what) const;
  // Counts are [size()], not negative, and add up to `total` (unless that is -1).
  void check_counts(std::span<const int64_t> counts, int64_t total, const char* what) const;

  const char* phase_ = "start";
  std::vector<ByteSend> sends_;
  std::vector<ByteRecv> recvs_;
};

/// Labels what a communicator does while this object lives; nests. `phase` is a string literal.
class ScopedPhase {
 public:
  ScopedPhase(Communicator& comm, const char* phase) : comm_(comm), previous_(comm.phase()) {
    comm_.set_phase(phase);
  }
  ~ScopedPhase() { comm_.set_phase(previous_); }
  ScopedPhase(const ScopedPhase&) = delete;
  ScopedPhase& operator=(const ScopedPhase&) = delete;

 private:
  Communicator& comm_;
  const char* previous_;
};

}  // namespace airmoe::comm
