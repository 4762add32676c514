#include "apps/bench/network_timing.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/format.h>

namespace airmoe::bench {
namespace {

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count();
}

// Seconds per call of the slowest rank; the same on all ranks.
double sample(comm::Communicator& comm, const JointContender& contender, int64_t calls) {
  comm.barrier();
  const double start = now();
  for (int64_t i = 0; i < calls; ++i) contender.run();
  const double mine = now() - start;
  return comm.all_reduce_value(mine, comm::Reduction::max) / static_cast<double>(calls);
}

JointTiming summarise(std::vector<double> seconds, int64_t calls) {
  std::sort(seconds.begin(), seconds.end());
  const std::size_t n = seconds.size();
  const auto last = static_cast<std::size_t>(std::ceil(0.99 * static_cast<double>(n))) - 1;
  return {.median = n % 2 == 1 ? seconds[n / 2] : (seconds[n / 2 - 1] + seconds[n / 2]) / 2,
          .least = seconds.front(),
          .p99 = seconds[last],
          .samples = static_cast<int64_t>(n),
          .calls_per_sample = calls};
}

}  // namespace

std::vector<JointTiming> measure_together(comm::Communicator& comm,
                                          const std::vector<JointContender>& contenders,
                                          const NetworkEffort& effort) {
  double slowest = 0;
  for (const JointContender& c : contenders) {
    sample(comm, c, 1);  // buffers grow, connections are made
    slowest = std::max(slowest, sample(comm, c, 2));
  }
  const auto calls = static_cast<int64_t>(std::clamp(effort.sample_seconds / slowest, 1.0, 1000.0));
  std::vector<std::vector<double>> seconds(contenders.size());
  const double start = now();
  for (int64_t r = 0; r < effort.warm_up + effort.repetitions; ++r) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const double s = sample(comm, contenders[i], calls);
      if (r >= effort.warm_up) seconds[i].push_back(s);
    }
    const double elapsed = comm.all_reduce_value(now() - start, comm::Reduction::max);
    if (r >= effort.warm_up && elapsed > effort.case_seconds) break;
  }
  std::vector<JointTiming> timings;
  for (auto& list : seconds) timings.push_back(summarise(std::move(list), calls));
  return timings;
}

std::string short_bytes(int64_t bytes) {
  if (bytes >= int64_t{1} << 20 && bytes % (int64_t{1} << 20) == 0) {
    return fmt::format("{} Mi", bytes >> 20);
  }
  if (bytes >= 1024 && bytes % 1024 == 0) return fmt::format("{} Ki", bytes >> 10);
  return fmt::format("{}", bytes);
}

}  // namespace airmoe::bench
