#include "apps/bench/network_exchange.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "apps/bench/alltoallv.hpp"
#include "comm/base/error.hpp"

namespace airmoe::bench {
namespace {

using comm::Communicator;

// The messages of one rank, and what comes to it.
class Messages {
 public:
  Messages(const Traffic& traffic, int rank, int64_t bytes) : traffic_(traffic), rank_(rank) {
    for (const int to : traffic.receivers) {
      out_.emplace_back(static_cast<std::size_t>(bytes), value(rank, to));
      sends_.push_back({to, out_.back()});
    }
    in_.resize(traffic.senders.size(), std::vector<uint8_t>(static_cast<std::size_t>(bytes)));
    for (std::size_t i = 0; i < in_.size(); ++i) recvs_.push_back({traffic.senders[i], in_[i]});
  }
  static uint8_t value(int from, int to) { return static_cast<uint8_t>(17 * from + 5 * to + 1); }

  void exchange(Communicator& comm) { comm.exchange<uint8_t>(sends_, recvs_, 0).wait(); }
  void sparse_exchange(Communicator& comm) { comm.sparse_exchange<uint8_t>(sends_, inbox_); }

  void check_exchange() const {
    for (std::size_t i = 0; i < in_.size(); ++i) check(traffic_.senders[i], in_[i]);
  }
  void check_sparse_exchange() const {
    AIRMOE_CHECK(inbox_.arrivals().size() == traffic_.senders.size(),
                 "{} messages arrived instead of {}", inbox_.arrivals().size(),
                 traffic_.senders.size());
    for (std::size_t i = 0; i < traffic_.senders.size(); ++i) {
      check(traffic_.senders[i], inbox_.data(inbox_.arrivals()[i]));
    }
  }
  void check(int from, std::span<const uint8_t> data) const {
    const auto is_right = [&](uint8_t v) { return v == value(from, rank_); };
    AIRMOE_CHECK(std::all_of(data.begin(), data.end(), is_right),
                 "a message from rank {} arrived changed", from);
  }

 private:
  const Traffic& traffic_;
  int rank_;
  std::vector<std::vector<uint8_t>> out_, in_;
  std::vector<comm::Send<uint8_t>> sends_;
  std::vector<comm::Recv<uint8_t>> recvs_;
  comm::Inbox<uint8_t> inbox_;
};

}  // namespace

Traffic dense_traffic(int rank, int size) {
  Traffic traffic{"dense", {}, {}};
  for (int r = 0; r < size; ++r) {
    if (r != rank) traffic.receivers.push_back(r);
  }
  traffic.senders = traffic.receivers;
  return traffic;
}

Traffic sparse_traffic(int rank, int size, int64_t peers) {
  Traffic traffic{fmt::format("sparse, {} peers", peers), {}, {}};
  for (int64_t i = 1; i <= peers; ++i) {
    const auto step = static_cast<int>(std::max<int64_t>(1, i * size / (peers + 1)));
    traffic.receivers.push_back((rank + step) % size);
    traffic.senders.push_back((rank + size - step) % size);
  }
  std::sort(traffic.receivers.begin(), traffic.receivers.end());
  std::sort(traffic.senders.begin(), traffic.senders.end());
  return traffic;
}

nlohmann::json measure_exchange(Communicator& control, const Traffic& traffic, int64_t bytes,
                                const std::vector<ExchangeContender>& contenders,
                                const NetworkEffort& effort) {
  Messages messages(traffic, control.rank(), bytes);
  Alltoallv baseline(control.size(), bytes, traffic.receivers, traffic.senders);
  for (const int to : traffic.receivers) {
    std::ranges::fill(baseline.message_to(to), Messages::value(control.rank(), to));
  }
  std::vector<JointContender> joint = {
      {"MPI_Alltoallv, sizes known", [&] { baseline.run(); }},
      {"MPI_Alltoall + MPI_Alltoallv", [&] { baseline.run_with_sizes(); }},
  };
  baseline.run_with_sizes();
  for (const int from : traffic.senders) messages.check(from, baseline.message_from(from));
  for (const ExchangeContender& c : contenders) {
    if (c.knows_sizes) {
      joint.push_back({c.name, [&] { messages.exchange(*c.comm); }});
      messages.exchange(*c.comm);
      messages.check_exchange();
    } else {
      joint.push_back({c.name, [&] { messages.sparse_exchange(*c.comm); }});
      messages.sparse_exchange(*c.comm);
      messages.check_sparse_exchange();
    }
  }
  const auto timings = measure_together(control, joint, effort);
  nlohmann::json rows = nlohmann::json::array();
  for (std::size_t i = 0; i < joint.size(); ++i) {
    const double to_known = timings[i].median / timings[0].median;
    const double to_both = timings[i].median / timings[1].median;
    if (control.rank() == 0) {
      fmt::print("{:<18}{:>8}  {:<30}{:>12.1f}{:>12.2f}{:>12.2f}\n", i == 0 ? traffic.name : "",
                 i == 0 ? short_bytes(bytes) : "", joint[i].name, timings[i].median * 1e6, to_known,
                 to_both);
    }
    rows.push_back({{"traffic", traffic.name},
                    {"bytes", bytes},
                    {"how", joint[i].name},
                    {"median_seconds", timings[i].median},
                    {"p99_seconds", timings[i].p99},
                    {"least_seconds", timings[i].least},
                    {"samples", timings[i].samples},
                    {"calls_per_sample", timings[i].calls_per_sample},
                    {"to_alltoallv", to_known},
                    {"to_alltoall_and_alltoallv", to_both}});
  }
  return rows;
}

nlohmann::json measure_all_reduce(Communicator& control, int64_t bytes,
                                  const std::vector<NamedCommunicator>& transports,
                                  const NetworkEffort& effort) {
  std::vector<float> data(static_cast<std::size_t>(bytes) / sizeof(float));
  std::vector<JointContender> joint;
  for (const auto& t : transports) {
    joint.push_back(
        {t.name, [&, comm = t.comm] { comm->all_reduce(std::span(data), comm::Reduction::sum); }});
  }
  const auto timings = measure_together(control, joint, effort);
  nlohmann::json rows = nlohmann::json::array();
  if (control.rank() == 0) fmt::print("{:>8}", short_bytes(bytes));
  for (std::size_t i = 0; i < joint.size(); ++i) {
    if (control.rank() == 0) fmt::print("{:>15.1f}", timings[i].median * 1e6);
    rows.push_back({{"transport", joint[i].name},
                    {"bytes", bytes},
                    {"median_seconds", timings[i].median},
                    {"least_seconds", timings[i].least},
                    {"samples", timings[i].samples}});
  }
  if (control.rank() == 0) fmt::print("\n");
  return rows;
}

}  // namespace airmoe::bench
