#pragma once
// Repeated timing. Contenders that are to be compared run in turn, one repetition each, so that
// whatever else the machine does meets all of them alike.

#include <functional>
#include <string>
#include <vector>

namespace airmoe::bench {

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
};

/// One Timing per contender. p99 is the nearest-rank percentile (the maximum below 100
/// repetitions).
std::vector<Timing> measure(const std::vector<Contender>& contenders, Repeats repeats);

}  // namespace airmoe::bench
