#include "apps/bench/report.hpp"

#include <fstream>

#include <fmt/format.h>

#include "comm/base/error.hpp"

namespace airmoe::bench {

void Report::run(const Group& group) {
  if (results_.empty()) {
    fmt::print("{:<20}{:<26}{:>11}{:>11}{:>9}{:>10}{:>9}\n", "work", "how", "median us", "p99 us",
               "GFLOP/s", "x floor", "x first");
  }
  const std::vector<Timing> timings = measure(group.contenders, repeats_);
  const double floor = machine_.floor_seconds(group.flops, group.bytes);
  for (std::size_t i = 0; i < timings.size(); ++i) {
    const Timing& time = timings[i];
    const double ratio = time.median / timings.front().median;
    fmt::print("{:<20}{:<26}{:>11.1f}{:>11.1f}{:>9.1f}{:>10.2f}{:>9.2f}\n",
               i == 0 ? group.name : "", group.contenders[i].name, 1e6 * time.median,
               1e6 * time.p99, 1e-9 * group.flops / time.median, time.median / floor, ratio);
    results_.push_back({{"work", group.name},
                        {"how", group.contenders[i].name},
                        {"median_seconds", time.median},
                        {"p99_seconds", time.p99},
                        {"least_seconds", time.least},
                        {"repetitions", time.repetitions},
                        {"flops", group.flops},
                        {"bytes", group.bytes},
                        {"floor_seconds", floor},
                        {"times_floor", time.median / floor},
                        {"times_first", ratio}});
  }
}

nlohmann::json Report::json() const {
  return {{"machine", describe_machine(machine_)},
          {"clock", repeats_.clock == Clock::wall ? "wall" : "processor"},
          {"results", results_}};
}

void write_json(const std::string& path, const nlohmann::json& json) {
  if (path.empty()) return;
  std::ofstream file(path);
  file << json.dump(2) << '\n';
  file.close();
  if (!file) fail(ExitCode::io, "{}: cannot write the results", path);
}

}  // namespace airmoe::bench
