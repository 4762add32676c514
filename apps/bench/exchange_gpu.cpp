// airmoe-bench exchange-gpu: rows of device memory between ranks, against what NCCL does with equal
// parts of the same bytes.

#include <memory>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "apps/bench/command.hpp"
#include "apps/bench/network_timing.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/transport.hpp"
#include "comm/base/cuda/stream.hpp"
#include "comm/cuda/device_communicator.hpp"
#include "comm/cuda/plain_all_to_all.hpp"
#include "comm/mpi_environment.hpp"

namespace airmoe::bench {
namespace {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::Stream;
using comm::cuda::DeviceCommunicator;
using comm::cuda::RowPlan;

/// Calls put on the stream before the host waits.
constexpr int kCallsPerWait = 8;

struct ExchangeGpuOptions {
  int64_t rows = 8192, dim = 256;
  std::string type = "bf16", device_transport = "auto", json;
  NetworkEffort effort;
  apps::Transport transport;
};

/// Rows from one rank to another. Ragged: a third to five thirds of the mean.
struct Pattern {
  const char* name;
  bool ragged;
  int64_t rows(const ExchangeGpuOptions& o, int from, int to, int size) const {
    const int64_t mean = o.rows / size;
    return ragged ? mean * (1 + 2 * ((from + 3 * to) % 3)) / 3 : mean;
  }
};
constexpr Pattern kPatterns[] = {{"even", false}, {"ragged", true}};

/// A row is so many 16-bit words; what they mean does not matter to an exchange.
using Word = uint16_t;

Word word_of(int owner, int64_t row, int64_t column) {
  return static_cast<Word>(owner * 9176 + row * 131 + column);
}
/// The i-th row that a rank sends, spread over its table.
int64_t row_of(int64_t i, int64_t rows) {
  return i * 7919 % rows;
}

struct Case {
  RowPlan plan;
  DeviceBuffer<Word> table, packed, received;
  DeviceBuffer<int32_t> rows;
  int64_t bytes_to_others = 0;
  int64_t plain_bytes = 0;  ///< per pair, so that all ranks together send as much
};

Case make_case(const ExchangeGpuOptions& o, const Pattern& pattern, int64_t width,
               DeviceCommunicator& comm, const Stream& stream) {
  Case c;
  const int size = comm.size(), rank = comm.rank();
  std::vector<int64_t> counts;
  std::vector<int32_t> rows;
  int64_t total = 0;
  for (int to = 0; to < size; ++to) {
    counts.push_back(pattern.rows(o, rank, to, size));
    for (int64_t i = 0; i < counts.back(); ++i) {
      rows.push_back(static_cast<int32_t>(row_of(std::ssize(rows), o.rows)));
    }
    if (to != rank) c.bytes_to_others += counts.back() * width * 2;
    for (int from = 0; from < size; ++from) {
      if (from != to) total += pattern.rows(o, from, to, size) * width * 2;
    }
  }
  if (size > 1) c.plain_bytes = total / (int64_t{size} * (size - 1));
  std::vector<Word> table(static_cast<std::size_t>(o.rows * width));
  for (int64_t row = 0; row < o.rows; ++row) {
    for (int64_t k = 0; k < width; ++k) table[row * width + k] = word_of(rank, row, k);
  }
  c.table.upload(table, stream);
  c.rows.upload(rows, stream);
  comm.plan_rows(counts, c.rows.data(), c.plan);
  // Large enough for the plain exchange too.
  const int64_t plain_words = c.plain_bytes / 2 * size;
  c.packed.ensure(std::max(c.plan.sent * width, plain_words));
  c.packed.zero(stream);
  c.received.ensure(std::max(c.plan.received * width, plain_words));
  stream.synchronize();
  return c;
}

void check_received(const ExchangeGpuOptions& o, const Pattern& pattern, int64_t width,
                    const Case& c, DeviceCommunicator& comm, const Stream& stream) {
  std::vector<Word> received(static_cast<std::size_t>(c.received.size()));
  comm.wait(stream);
  c.received.download(received, stream);
  stream.synchronize();
  std::size_t at = 0;
  for (int from = 0; from < comm.size(); ++from) {
    int64_t first = 0;  // rows that `from` sends to ranks before this one
    for (int to = 0; to < comm.rank(); ++to) first += pattern.rows(o, from, to, comm.size());
    for (int64_t i = 0; i < c.plan.recv_counts[from]; ++i) {
      for (int64_t k = 0; k < width; ++k, ++at) {
        AIRMOE_CHECK(received[at] == word_of(from, row_of(first + i, o.rows), k),
                     "row {} from rank {} arrived changed", i, from);
      }
    }
  }
}

nlohmann::json measure_pattern(const ExchangeGpuOptions& o, const Pattern& pattern,
                               comm::Communicator& host, DeviceCommunicator& comm,
                               comm::cuda::PlainAllToAll* plain, const Stream& stream) {
  const int64_t width = o.dim * (o.type == "f32" ? 2 : 1);
  Case c = make_case(o, pattern, width, comm, stream);
  const auto rows = [&] {
    comm.exchange_rows(c.plan, c.table.data(), width, c.received.data(), stream);
  };
  rows();
  check_received(o, pattern, width, c, comm, stream);

  std::vector<int64_t> send_counts, recv_counts;
  for (int r = 0; r < comm.size(); ++r) {
    send_counts.push_back(c.plan.send_counts[r] * width);
    recv_counts.push_back(c.plan.recv_counts[r] * width);
  }
  const auto repeat = [&](auto call) {
    return [&, call] {
      for (int i = 0; i < kCallsPerWait; ++i) call();
      comm.wait(stream);
    };
  };
  std::vector<JointContender> contenders;
  if (plain != nullptr) {
    contenders.push_back({"plain ncclSend/ncclRecv", repeat([&] {
                            plain->run(reinterpret_cast<const std::byte*>(c.packed.data()),
                                       reinterpret_cast<std::byte*>(c.received.data()),
                                       c.plain_bytes, stream);
                          })});
  }
  contenders.push_back({"all_to_all_v", repeat([&] {
                          comm.all_to_all_v(c.packed.data(), send_counts, c.received.data(),
                                            recv_counts, stream);
                        })});
  contenders.push_back({"exchange_rows", repeat(rows)});
  const auto timings = measure_together(host, contenders, o.effort);

  nlohmann::json results = nlohmann::json::array();
  const double sent =
      host.all_reduce_value(static_cast<double>(c.bytes_to_others), comm::Reduction::sum) /
      host.size();
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    const double seconds = timings[i].median / kCallsPerWait;
    const double speed = seconds > 0 ? sent / seconds / 1e9 : 0;
    const double of_first = timings[0].median / timings[i].median;
    if (host.rank() == 0) {
      fmt::print("{:<8}{:<26}{:10.1f} us{:10.1f} GB/s{:8.2f} of the first\n", pattern.name,
                 contenders[i].name, 1e6 * seconds, speed, of_first);
    }
    results.push_back({{"pattern", pattern.name},
                       {"contender", contenders[i].name},
                       {"seconds_median", seconds},
                       {"seconds_least", timings[i].least / kCallsPerWait},
                       {"samples", timings[i].samples},
                       {"bytes_to_others_per_rank", sent},
                       {"gigabytes_per_second", speed},
                       {"of_first", of_first}});
  }
  return results;
}

ExitCode bench_exchange_gpu(const ExchangeGpuOptions& o, comm::Communicator& host) {
  std::string reason;
  const int devices = airmoe::cuda::device_count(&reason);
  if (devices == 0) fail(ExitCode::config, "exchange-gpu needs a CUDA device: {}", reason);
  airmoe::cuda::use_device(host.rank() % devices);
  const auto comm = comm::cuda::make_device_communicator(
      host, {.transport = comm::cuda::parse_device_transport(o.device_transport),
             .deadline_seconds = o.transport.deadline_seconds});
  const bool nccl = std::string_view(comm->backend()) == "nccl";
  const auto plain =
      nccl && host.size() > 1 ? std::make_unique<comm::cuda::PlainAllToAll>(host) : nullptr;
  const Stream stream;
  nlohmann::json j = {{"benchmark", "exchange-gpu"},
                      {"data", "rows of a table by plan; equal parts for the plain exchange"},
                      {"device", airmoe::cuda::device_properties().name},
                      {"devices", devices},
                      {"ranks", host.size()},
                      {"backend", comm->backend()},
                      {"nccl", comm::cuda::nccl_library_version()},
                      {"rows_per_rank", o.rows},
                      {"dim", o.dim},
                      {"type", o.type},
                      {"calls_per_wait", kCallsPerWait},
                      {"results", nlohmann::json::array()}};
  if (host.rank() == 0) {
    fmt::print("{} ranks on {} x {}, {}; {} rows of {} {} per rank; medians\n", host.size(),
               devices, airmoe::cuda::device_properties().name, comm->backend(), o.rows, o.dim,
               o.type);
  }
  for (const Pattern& pattern : kPatterns) {
    for (auto& result : measure_pattern(o, pattern, host, *comm, plain.get(), stream)) {
      j["results"].push_back(std::move(result));
    }
  }
  if (host.rank() == 0) write_json(o.json, j);
  return ExitCode::ok;
}

}  // namespace

ExitCode run_exchange_gpu(int argc, char** argv) {
  ExchangeGpuOptions o;
  namespace po = boost::program_options;
  po::options_description options("Exchange of device memory", 100, 60);
  add_count(options, "rows", o.rows, 1, "rows that each rank sends, its own share included");
  add_count(options, "dim", o.dim, 1, "elements of a row");
  add_count(options, "repetitions", o.effort.repetitions, 1, "samples per contender at most");
  options.add_options()("type", po::value(&o.type)->value_name("NAME")->default_value(o.type),
                        "bf16 or f32");
  options.add_options()(
      "device-transport",
      po::value(&o.device_transport)->value_name("NAME")->default_value(o.device_transport),
      "auto, nccl, staged or direct: how device memory moves");
  options.add_options()("json", po::value(&o.json)->value_name("FILE"), "write results here");
  apps::add_transport_options(options, o.transport);
  comm::MpiEnvironment environment(&argc, &argv);
  const int code = apps::run_main("airmoe-bench exchange-gpu", environment, [&] {
    if (!parse(argc, argv, "airmoe-bench exchange-gpu: rows of device memory between ranks",
               options, environment.rank() == 0)) {
      return ExitCode::ok;
    }
    if (o.type != "bf16" && o.type != "f32") {
      fail(ExitCode::usage, "--type {}: give bf16 or f32", o.type);
    }
    const auto host = apps::make_communicator(o.transport);
    return bench_exchange_gpu(o, *host);
  });
  return static_cast<ExitCode>(code);
}

}  // namespace airmoe::bench
