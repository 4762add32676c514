#include "scheduler/traffic/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <nlohmann/json.hpp>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

struct Constant {
  const char* name;
  double MachineConstants::*value;
};
constexpr Constant kConstants[] = {
    {"latency_s", &MachineConstants::latency_s},
    {"bandwidth_bytes_per_s", &MachineConstants::bandwidth_bytes_per_s},
    {"memory_bandwidth_bytes_per_s", &MachineConstants::memory_bandwidth_bytes_per_s},
    {"flops", &MachineConstants::flops},
};

}  // namespace

void MachineConstants::validate() const {
  for (const Constant& c : kConstants) {
    if (!(this->*c.value > 0) || !std::isfinite(this->*c.value)) {
      fail(ExitCode::usage, "{} = {}: it must be positive and finite", c.name, this->*c.value);
    }
  }
}

MachineConstants read_machine_constants(const std::string& path, MachineConstants base) {
  std::ifstream file(path);
  if (!file) fail(ExitCode::io, "{}: cannot read this file", path);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) fail(ExitCode::bad_data, "{}: not a JSON object", path);
  const auto machine = json.find("machine");
  const nlohmann::json& from = machine != json.end() && machine->is_object() ? *machine : json;
  bool any = false;
  for (const Constant& c : kConstants) {
    const auto value = from.find(c.name);
    if (value == from.end()) continue;
    if (!value->is_number() || !(value->get<double>() > 0)) {
      fail(ExitCode::bad_data, "{}: {} is {}, not a positive number", path, c.name, value->dump());
    }
    base.*c.value = value->get<double>();
    any = true;
  }
  if (!any) {
    fail(ExitCode::bad_data,
         "{}: has neither latency_s, bandwidth_bytes_per_s, memory_bandwidth_bytes_per_s nor "
         "flops; `airmoe-bench network --json FILE` writes them",
         path);
  }
  return base;
}

double RankCost::seconds(const MachineConstants& machine) const {
  return messages * machine.latency_s + std::max(sent, received) / machine.bandwidth_bytes_per_s +
         touched / machine.memory_bandwidth_bytes_per_s + flops / machine.flops;
}

double pair_flops(double scored, double selected, const TrafficShape& shape) {
  const auto d = static_cast<double>(shape.dim);
  const double expert = 2.0 * d * static_cast<double>(shape.expert_dim * shape.matrices());
  return 2.0 * d * scored + (4.0 * d + 3.0 * expert) * selected;
}

double touched_bytes(double payload, double owned, double copies, const TrafficShape& shape) {
  const auto values = static_cast<double>(shape.values());
  return 2.0 * payload + values * (20.0 * copies + 48.0 * owned);
}

RankCost cost_of(const StepPrediction& step, int rank, const TrafficShape& shape) {
  const RankTraffic traffic = step.traffic.of_rank(rank);
  const RankLoad& load = step.load[rank];
  const auto sent = static_cast<double>(traffic.sent);
  const auto received = static_cast<double>(traffic.received);
  return {.messages = static_cast<double>(traffic.messages),
          .sent = sent,
          .received = received,
          .touched = touched_bytes(sent + received, static_cast<double>(load.owned),
                                   static_cast<double>(load.copies), shape),
          .flops = pair_flops(static_cast<double>(load.scored), static_cast<double>(load.selected),
                              shape)};
}

double predicted_seconds(const StepPrediction& step, const TrafficShape& shape,
                         const MachineConstants& machine) {
  double slowest = 0;
  for (int r = 0; r < step.traffic.ranks(); ++r) {
    slowest = std::max(slowest, cost_of(step, r, shape).seconds(machine));
  }
  return slowest;
}

double memory_bytes(const RankLoad& load, const TrafficShape& shape) {
  const auto values = static_cast<double>(shape.values());
  const auto d = static_cast<double>(shape.dim);
  return static_cast<double>(load.owned + load.copies) * 12.0 * values +
         static_cast<double>(load.centroids) * 12.0 * d +
         static_cast<double>(load.owned) * (8.0 * values + 4.0 * d) +
         32.0 * d * static_cast<double>(load.tokens);
}

}  // namespace airmoe::scheduler
