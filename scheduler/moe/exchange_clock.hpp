#pragma once
// How much of the time that messages are under way a rank spends waiting for them.

#include <chrono>

#include "comm/ticket.hpp"

namespace airmoe::scheduler {

/// Seconds since reset() in which at least one tracked exchange was under way, and of these the
/// seconds spent inside wait(). An exchange ends when this rank notices it, in test() or wait().
/// Local.
class ExchangeClock {
 public:
  double under_way() const { return under_way_; }
  double waited() const { return waited_; }
  /// Share of the time under way in which the rank computed instead of waiting; 0 without messages.
  double hidden_share() const { return under_way_ > 0 ? 1.0 - waited_ / under_way_ : 0.0; }
  void reset() { under_way_ = waited_ = 0; }

 private:
  friend class TrackedTicket;
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

  void begin() {
    if (open_++ == 0) since_ = Clock::now();
  }
  void end() {
    if (--open_ == 0) under_way_ += seconds(Clock::now() - since_);
  }

  int open_ = 0;
  Clock::time_point since_;
  double under_way_ = 0, waited_ = 0;
};

/// A ticket that reports to an ExchangeClock.
class TrackedTicket {
 public:
  /// Takes over an exchange that has just been started.
  void start(ExchangeClock& clock, comm::Ticket ticket) {
    ticket_ = std::move(ticket);
    clock_ = &clock;
    clock.begin();
  }
  /// Local: lets messages move; nothing when there is none.
  void test() {
    if (clock_ != nullptr && ticket_.test()) finish();
  }
  /// Blocks until the exchange has ended; nothing when there is none.
  void wait() {
    if (clock_ == nullptr) return;
    const auto start = ExchangeClock::Clock::now();
    ticket_.wait();
    clock_->waited_ += ExchangeClock::seconds(ExchangeClock::Clock::now() - start);
    finish();
  }

 private:
  void finish() {
    ticket_.wait();
    clock_->end();
    clock_ = nullptr;
  }
  comm::Ticket ticket_;
  ExchangeClock* clock_ = nullptr;
};

}  // namespace airmoe::scheduler
