#pragma once
// Times of calls that all ranks make together.

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"

namespace airmoe::bench {

struct NetworkEffort {
  int64_t repetitions = 60;  ///< samples per contender at most
  int64_t warm_up = 2;
  double sample_seconds = 2e-3;  ///< calls of one sample are repeated until they take this long
  double case_seconds = 4;       ///< no further samples after this long
};

/// Work of all ranks; run() returns when this rank's part is done.
struct JointContender {
  std::string name;
  std::function<void()> run;
};

/// Seconds of one call until the slowest rank is done, one entry per contender.
struct JointTiming {
  double median = 0, least = 0, p99 = 0;
  int64_t samples = 0, calls_per_sample = 0;
};

/// Collective. Samples of the contenders follow one another in turn, each after a barrier; one
/// sample is the mean of a row of calls, whose number is the same for all contenders. Same result
/// on all ranks.
std::vector<JointTiming> measure_together(comm::Communicator& comm,
                                          const std::vector<JointContender>& contenders,
                                          const NetworkEffort& effort);

/// "64", "16 Ki", "1 Mi": bytes for a table.
std::string short_bytes(int64_t bytes);

}  // namespace airmoe::bench
