#pragma once
// How many threads a rank may run without taking processors from its neighbours. Ranks compute in
// one thread; what is done once, at start, may use more.

#include <array>
#include <cstdint>
#include <span>

#include "comm/communicator.hpp"

namespace airmoe::scheduler {

/// Where a process may run: a number that says which running kernel, and a bit per processor.
struct ProcessorSet {
  uint64_t machine = 0;
  std::array<uint64_t, 64> processors{};  ///< of at most 4096
};

/// Local: of the calling thread (sched_getaffinity). Empty where the system does not tell.
ProcessorSet allowed_processor_set();
/// Local: their number, at least 1.
int64_t allowed_processors();

/// Local. Every processor is divided evenly among those of `all` that may run on it; the share of
/// all[which] is the sum of its parts, rounded down, at least 1. So ranks that are bound to
/// processors of their own have these, and 64 ranks that may all run on 64 processors have one
/// each.
int64_t processor_share(std::span<const ProcessorSet> all, int64_t which);
/// Collective: the share of this rank among all ranks. Bytes sent: 520 per rank.
int64_t processor_share(comm::Communicator& comm);

}  // namespace airmoe::scheduler
