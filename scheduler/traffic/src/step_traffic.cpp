#include "scheduler/traffic/step_traffic.hpp"

namespace airmoe::scheduler {

namespace {

struct Names {
  const char* name;
  const char* phase;
};
constexpr std::array<Names, kChannels> kNames = {{
    {"metadata", "dispatch"},
    {"dispatch", "dispatch"},
    {"scores", "select"},
    {"cuts", "select"},
    {"combine", "combine"},
    {"usage_to_owner", "usage"},
    {"usage_to_copy", "usage"},
    {"backward_dispatch", "backward_dispatch"},
    {"backward_combine", "backward_combine"},
    {"copy_requests", "copies"},
    {"copy_values", "copies"},
    {"copy_gradients", "copy_gradients"},
    {"lists", "lists"},
}};

}  // namespace

const char* name_of(Channel channel) {
  return kNames[static_cast<std::size_t>(channel)].name;
}
const char* phase_of(Channel channel) {
  return kNames[static_cast<std::size_t>(channel)].phase;
}

int64_t StepTraffic::bytes(Channel c) const {
  int64_t total = 0;
  for (int r = 0; r < ranks_; ++r) total += at(c, r).sent;
  return total;
}

int64_t StepTraffic::bytes() const {
  int64_t total = 0;
  for (const RankTraffic& t : of_) total += t.sent;
  return total;
}

int64_t StepTraffic::phase_bytes(const std::string& phase, int rank) const {
  int64_t total = 0;
  for (int c = 0; c < kChannels; ++c) {
    const auto channel = static_cast<Channel>(c);
    if (phase == phase_of(channel)) total += at(channel, rank).sent;
  }
  return total;
}

int64_t StepTraffic::phase_messages(const std::string& phase, int rank) const {
  int64_t total = 0;
  for (int c = 0; c < kChannels; ++c) {
    const auto channel = static_cast<Channel>(c);
    if (phase == phase_of(channel)) total += at(channel, rank).messages;
  }
  return total;
}

RankTraffic StepTraffic::of_rank(int rank) const {
  RankTraffic sum;
  for (int c = 0; c < kChannels; ++c) {
    const RankTraffic& t = at(static_cast<Channel>(c), rank);
    sum.sent += t.sent;
    sum.received += t.received;
    sum.messages += t.messages;
  }
  return sum;
}

}  // namespace airmoe::scheduler
