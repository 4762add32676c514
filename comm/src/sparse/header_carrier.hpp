#pragma once
// Moves one small message, a header, from every rank of a fixed set to every other.

#include <cstdint>
#include <span>

#include "comm/message.hpp"

namespace airmoe::comm {

/// Headers go to the send peers and come from the receive peers, by their places in those lists.
/// One round: fill outgoing(i), publish(), wait(), read incoming(i) before the next publish().
class HeaderCarrier {
 public:
  virtual ~HeaderCarrier() = default;
  /// Largest header, bytes; a multiple of 8, at least 8.
  virtual int64_t slot_bytes() const = 0;
  /// Memory of the next header to send peer `i`. Shape: [slot_bytes()], aligned for int64_t
  virtual std::byte* outgoing(std::size_t i) = 0;
  /// Starts sending. Shape of bytes: [send peers], each 8 to slot_bytes()
  virtual void publish(std::span<const int64_t> bytes, const char* phase) = 0;
  /// Waits for the headers of all receive peers; Error(ExitCode::watchdog) names those missing.
  virtual void wait(const char* phase) = 0;
  /// The header of receive peer `i`.
  virtual ConstBytes incoming(std::size_t i) const = 0;
};

}  // namespace airmoe::comm
