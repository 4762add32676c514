#pragma once
// Compares StatsCommunicator with mpi_count.hpp, phase by phase.

#include <gtest/gtest.h>

#include "comm/stats_communicator.hpp"
#include "tests/comm/support/mpi_count.hpp"

namespace airmoe::test {

struct WireCheck {
  /// Compare messages too: no message was cut and no sparse exchange sent a long one, whose header
  /// is a message of its own.
  bool point_to_point_messages = false;
};

/// Expects the bytes of every phase to be those that were handed to MPI since mpi_counts() was
/// cleared. For a tap over the MPI backend with sparse exchanges by NBX: its synchronous sends
/// carry 8 bytes of header each.
inline void expect_equal_counts(const comm::StatsCommunicator& stats, const WireCheck& check) {
  for (const auto& [phase, counted] : stats.stats()) {
    const MpiCount wire = mpi_counts()[phase];
    const int64_t headers = 8 * wire.synchronous_sends;
    EXPECT_EQ(counted.bytes_sent, wire.send_bytes + wire.synchronous_send_bytes - headers +
                                      wire.gather_to_all_bytes + wire.broadcast_bytes +
                                      wire.reduction_bytes)
        << phase;
    if (!check.point_to_point_messages) continue;
    EXPECT_EQ(counted.messages_sent, wire.sends + wire.synchronous_sends + wire.gathers_to_all +
                                         wire.broadcasts + wire.reductions)
        << phase;
  }
  for (const auto& [phase, wire] : mpi_counts()) {
    if (wire.sends + wire.synchronous_sends == 0) continue;
    EXPECT_TRUE(stats.stats().contains(phase)) << phase << " sends, but was not counted";
  }
}

}  // namespace airmoe::test
