#include "scheduler/processors.hpp"

#include <algorithm>
#include <bit>
#include <fstream>
#include <string>
#include <vector>

#include <sched.h>

#include "comm/base/fnv.hpp"

namespace airmoe::scheduler {
namespace {

constexpr std::size_t kWords = std::tuple_size_v<decltype(ProcessorSet::processors)>;

/// The same for all processes under one running kernel, containers or not, and different elsewhere.
uint64_t machine_number() {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  return fnv1a(id);
}

}  // namespace

ProcessorSet allowed_processor_set() {
  ProcessorSet set;
  set.machine = machine_number();
  cpu_set_t allowed[sizeof(set.processors) / sizeof(cpu_set_t)];
  constexpr auto kMost = static_cast<int>(8 * sizeof(allowed));
  CPU_ZERO_S(sizeof(allowed), allowed);
  if (sched_getaffinity(0, sizeof(allowed), allowed) != 0) return set;
  for (int i = 0; i < kMost; ++i) {
    if (CPU_ISSET_S(i, sizeof(allowed), allowed)) {
      set.processors[static_cast<std::size_t>(i / 64)] |= uint64_t{1} << (i % 64);
    }
  }
  return set;
}

int64_t allowed_processors() {
  int64_t count = 0;
  for (const uint64_t word : allowed_processor_set().processors) count += std::popcount(word);
  return std::max<int64_t>(1, count);
}

int64_t processor_share(std::span<const ProcessorSet> all, int64_t which) {
  const ProcessorSet& mine = all[static_cast<std::size_t>(which)];
  double share = 0;
  for (std::size_t i = 0; i < 64 * kWords; ++i) {
    const auto allows = [&](const ProcessorSet& s) {
      return s.machine == mine.machine && (s.processors[i / 64] >> (i % 64) & 1) != 0;
    };
    if (!allows(mine)) continue;
    share += 1.0 / static_cast<double>(std::count_if(all.begin(), all.end(), allows));
  }
  return std::max<int64_t>(1, static_cast<int64_t>(share + 1e-6));
}

int64_t processor_share(comm::Communicator& comm) {
  const comm::ScopedPhase phase(comm, "processors");
  const ProcessorSet mine = allowed_processor_set();
  const auto ranks = static_cast<std::size_t>(comm.size());
  std::vector<uint64_t> machines(ranks), processors(ranks * kWords);
  comm.all_gather(std::span<const uint64_t>(&mine.machine, 1), std::span<uint64_t>(machines));
  comm.all_gather(std::span<const uint64_t>(mine.processors), std::span<uint64_t>(processors));
  std::vector<ProcessorSet> all(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    all[r].machine = machines[r];
    std::copy_n(processors.data() + r * kWords, kWords, all[r].processors.begin());
  }
  return processor_share(all, comm.rank());
}

}  // namespace airmoe::scheduler
