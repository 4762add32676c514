#include "apps/bench/timing.hpp"

#include <algorithm>
#include <cmath>
#include <ctime>

namespace airmoe::bench {
namespace {

double now(Clock clock) {
  timespec time{};
  clock_gettime(clock == Clock::wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Timing summarise(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const std::size_t count = seconds.size(), middle = count / 2;
  const auto rank = static_cast<std::size_t>(std::ceil(0.99 * static_cast<double>(count)));
  return {
      .median = count % 2 == 1 ? seconds[middle] : 0.5 * (seconds[middle - 1] + seconds[middle]),
      .p99 = seconds[rank - 1],
      .least = seconds.front(),
      .repetitions = static_cast<int64_t>(count)};
}

}  // namespace

std::vector<Timing> measure(const std::vector<Contender>& contenders, Repeats repeats) {
  std::vector<std::vector<double>> seconds(contenders.size());
  for (int64_t r = 0; r < repeats.warm_up + repeats.repetitions; ++r) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const double start = now(repeats.clock);
      contenders[i].run(r);
      const double elapsed = now(repeats.clock) - start;
      if (r >= repeats.warm_up) seconds[i].push_back(elapsed);
    }
  }
  std::vector<Timing> timings;
  for (std::vector<double>& list : seconds) timings.push_back(summarise(std::move(list)));
  return timings;
}

}  // namespace airmoe::bench
