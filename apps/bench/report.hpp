#pragma once
// Results as a table for people and as JSON for programs.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "apps/bench/machine.hpp"
#include "apps/bench/timing.hpp"

namespace airmoe::bench {

/// Contenders that do the same work, measured in turn.
struct Group {
  std::string name;
  double flops = 0;  ///< that the work needs, per repetition
  double bytes = 0;  ///< that have to come from beyond the cache, per repetition
  std::vector<Contender> contenders;
};

class Report {
 public:
  Report(const Machine& machine, Repeats repeats) : machine_(machine), repeats_(repeats) {}

  /// Measures the group and prints one line per contender: time, GFLOP/s, multiple of the machine's
  /// floor, and how much slower it is than the group's first contender.
  void run(const Group& group);

  /// {"machine": ..., "clock": ..., "results": [...]}: one object per contender.
  nlohmann::json json() const;

 private:
  Machine machine_;
  Repeats repeats_;
  nlohmann::json results_ = nlohmann::json::array();
};

/// Writes `json` to `path`, or does nothing for an empty path. Throws Error(ExitCode::io).
void write_json(const std::string& path, const nlohmann::json& json);

}  // namespace airmoe::bench
