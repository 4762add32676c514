#include "apps/bench/network_pairs.hpp"

#include <cstring>

#include <fmt/format.h>

#include "comm/base/blas.hpp"

namespace airmoe::bench {
namespace {

using comm::Communicator;

// Both directions of one message.
void ping_pong(Communicator& comm, const RankPair& pair, std::span<const uint8_t> out,
               std::span<uint8_t> in) {
  const int rank = comm.rank();
  if (rank != pair.first && rank != pair.second) return;
  const int peer = rank == pair.first ? pair.second : pair.first;
  const comm::Send<uint8_t> send{peer, out};
  const comm::Recv<uint8_t> recv{peer, in};
  const std::span<const comm::Send<uint8_t>> sends(&send, 1);
  const std::span<const comm::Recv<uint8_t>> recvs(&recv, 1);
  if (rank == pair.first) {
    comm.exchange<uint8_t>(sends, {}, 0).wait();
    comm.exchange<uint8_t>({}, recvs, 0).wait();
  } else {
    comm.exchange<uint8_t>({}, recvs, 0).wait();
    comm.exchange<uint8_t>(sends, {}, 0).wait();
  }
}

}  // namespace

LinkConstants fit_link(const std::vector<double>& bytes, const std::vector<double>& seconds) {
  // Least squares of (latency + b x slope) / t - 1.
  double ww = 0, wb = 0, bb = 0, w1 = 0, b1 = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const double w = 1 / seconds[i], b = bytes[i] / seconds[i];
    ww += w * w;
    wb += w * b;
    bb += b * b;
    w1 += w;
    b1 += b;
  }
  const double determinant = ww * bb - wb * wb;
  double latency = (w1 * bb - b1 * wb) / determinant;
  double slope = (ww * b1 - wb * w1) / determinant;
  if (latency < 0) {
    latency = 0;
    slope = b1 / bb;
  }
  return {latency, 1 / slope};
}

std::vector<RankPair> rank_pairs(const comm::NodeMap& nodes) {
  std::vector<RankPair> pairs;
  for (const auto& ranks : nodes.ranks_of) {
    if (ranks.size() < 2) continue;
    pairs.push_back({"same_node", ranks[0], ranks[1]});
    break;
  }
  if (nodes.num_nodes() > 1) {
    pairs.push_back({"other_node", nodes.ranks_of[0][0], nodes.ranks_of[1][0]});
  }
  return pairs;
}

nlohmann::json measure_pair(const RankPair& pair, const std::vector<NamedCommunicator>& transports,
                            const std::vector<int64_t>& sizes, const NetworkEffort& effort,
                            std::vector<LinkConstants>& constants) {
  Communicator& control = *transports.front().comm;
  const bool prints = control.rank() == 0;
  if (prints) {
    fmt::print("\nOne message between ranks {} and {} ({}), half a round trip\n{:>8}", pair.first,
               pair.second, pair.name, "bytes");
    for (const auto& t : transports) fmt::print("{:>12} us{:>8} GB/s", t.name, "");
    fmt::print("\n");
  }
  nlohmann::json rows = nlohmann::json::array();
  std::vector<double> bytes;
  std::vector<std::vector<double>> seconds(transports.size());
  for (const int64_t size : sizes) {
    std::vector<uint8_t> out(static_cast<std::size_t>(size), 7), in(out.size());
    std::vector<JointContender> contenders;
    for (const auto& t : transports) {
      contenders.push_back({t.name, [&, comm = t.comm] { ping_pong(*comm, pair, out, in); }});
    }
    const auto timings = measure_together(control, contenders, effort);
    bytes.push_back(static_cast<double>(size));
    if (prints) fmt::print("{:>8}", short_bytes(size));
    for (std::size_t i = 0; i < transports.size(); ++i) {
      const double one_way = timings[i].median / 2;
      seconds[i].push_back(one_way);
      if (prints) {
        fmt::print("{:>15.2f}{:>13.3f}", one_way * 1e6, static_cast<double>(size) / one_way * 1e-9);
      }
      rows.push_back({{"pair", pair.name},
                      {"transport", transports[i].name},
                      {"bytes", size},
                      {"median_seconds", one_way},
                      {"least_seconds", timings[i].least / 2},
                      {"samples", timings[i].samples}});
    }
    if (prints) fmt::print("\n");
  }
  constants.clear();
  for (std::size_t i = 0; i < transports.size(); ++i) {
    constants.push_back(fit_link(bytes, seconds[i]));
    if (prints) {
      fmt::print("{}: latency {:.2f} us, bandwidth {:.3f} GB/s\n", transports[i].name,
                 constants[i].latency_s * 1e6, constants[i].bandwidth_bytes_per_s * 1e-9);
    }
  }
  return rows;
}

double measure_memory_bandwidth(Communicator& comm, const NetworkEffort& effort) {
  const std::size_t size = std::size_t{64} << 20;
  std::vector<uint8_t> from(size, 1), to(size);
  const auto timings = measure_together(
      comm, {{"copy", [&] { std::memcpy(to.data(), from.data(), size); }}}, effort);
  return static_cast<double>(size) / timings[0].median;
}

double measure_flops(Communicator& comm, const NetworkEffort& effort) {
  constexpr int64_t kTokens = 256, kDim = 256, kCandidates = 2048;
  std::vector<float> a(kTokens * kDim, 0.5f), b(kDim * kCandidates, 0.25f);
  std::vector<float> c(kTokens * kCandidates);
  const auto timings = measure_together(
      comm,
      {{"gemm",
        [&] {
          blas::gemm(blas::Op::none, blas::Op::none, 1.0f, {a.data(), kTokens, kDim},
                     {b.data(), kDim, kCandidates}, 0.0f, {c.data(), kTokens, kCandidates});
        }}},
      effort);
  return 2.0 * kTokens * kDim * kCandidates / timings[0].median;
}

}  // namespace airmoe::bench
