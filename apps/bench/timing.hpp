#pragma once
// Repeated timing. Contenders that are to be compared run in turn, one repetition each, so that
// whatever else the machine does meets all of them alike.

#include <functional>
#include <string>
#include <vector>

namespace airmoe::bench {

/// wall: what a user waits for. processor: time this thread spent on a core, for work of one thread
/// that never waits; steady on a machine that others use too.
enum class Clock { wall, processor };

/// Seconds of one repetition.
struct Timing {
  double median = 0, p99 = 0, least = 0;
  int64_t repetitions = 0;
};

struct Contender {
  std::string name;
  std::function<void(int64_t repetition)> run;  ///< gets the repetition, warm-up included
};

struct Repeats {
  int64_t warm_up = 3, repetitions = 30;
  Clock clock = Clock::processor;
};

/// One Timing per contender. p99 is the nearest-rank percentile (the maximum below 100
/// repetitions).
std::vector<Timing> measure(const std::vector<Contender>& contenders, Repeats repeats);

}  // namespace airmoe::bench
