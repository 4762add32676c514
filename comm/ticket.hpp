#pragma once
// Handle of a non-blocking exchange.

#include <utility>

namespace airmoe::comm {

/// What a backend keeps for one exchange under way; it owns the object and reuses it.
class PendingExchange {
 public:
  /// Advances without blocking; true when everything has been sent and received.
  virtual bool test() = 0;
  /// Blocks until then.
  virtual void wait() = 0;
  /// The ticket is gone: ends what has not ended, best effort, and may be reused.
  virtual void release() noexcept = 0;

 protected:
  ~PendingExchange() = default;
};

/// Owns one exchange; movable. The communicator must outlive it.
class Ticket {
 public:
  Ticket() = default;
  explicit Ticket(PendingExchange* pending) : pending_(pending) {}
  Ticket(Ticket&& other) noexcept : pending_(std::exchange(other.pending_, nullptr)) {}
  Ticket& operator=(Ticket&& other) noexcept {
    std::swap(pending_, other.pending_);
    return *this;
  }
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  /// A ticket that was not waited for waits here, and logs an error instead of throwing it; while
  /// an exception passes through, it gives the messages up instead.
  ~Ticket() {
    if (pending_ != nullptr) pending_->release();
  }

  /// Local: advances the exchange; true when it has ended. Lets messages move during long
  /// computations.
  bool test() { return pending_ == nullptr || pending_->test(); }

  /// Local: blocks until all messages of this exchange are sent and received. Once is enough.
  void wait() {
    if (pending_ == nullptr) return;
    pending_->wait();
    std::exchange(pending_, nullptr)->release();
  }

 private:
  PendingExchange* pending_ = nullptr;
};

}  // namespace airmoe::comm
