// airmoe-bench network: what messages cost between ranks, every kind of sparse exchange against
// MPI_Alltoallv, and the constants of the cost model.

#include <charconv>
#include <memory>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/network_exchange.hpp"
#include "apps/bench/network_pairs.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/transport.hpp"
#include "comm/base/blas.hpp"
#include "comm/library_version.hpp"
#include "comm/node_map.hpp"

namespace airmoe::bench {
namespace {

namespace po = boost::program_options;
using comm::Communicator;

struct NetworkOptions {
  NetworkEffort effort;
  double seconds = 120;
  int64_t peers = 2;
  int64_t ranks_per_node = 0;
  std::vector<int64_t> sizes = {64, 1024, 4096, 16384, 65536, 262144, 1048576};
  std::string transport = "mpi", json, network;
};

const std::vector<int64_t> kPingPongSizes = {8, 64, 512, 4096, 32768, 262144, 1048576, 4194304};
const std::vector<int64_t> kAllReduceSizes = {64, 4096, 65536, 1048576};
// Dense traffic beyond this many bytes in and out of a rank is left out.
constexpr int64_t kMostDenseBytes = int64_t{16} << 20;

std::vector<int64_t> parse_sizes(const std::string& text) {
  std::vector<int64_t> sizes;
  const char* cursor = text.data();
  const char* end = text.data() + text.size();
  while (cursor <= end) {
    int64_t value = 0;
    const auto [next, error] = std::from_chars(cursor, end, value);
    if (error != std::errc() || value < 1 || value > (int64_t{1} << 30) ||
        (next != end && *next != ',')) {
      fail(ExitCode::usage,
           "--sizes {}: give bytes of 1 to 2^30 separated by commas, for example 64,16384", text);
    }
    sizes.push_back(value);
    cursor = next + 1;
  }
  return sizes;
}

// The communicators under test. The first, on MPI, also keeps the benchmark in step.
struct Contenders {
  std::vector<std::unique_ptr<Communicator>> owned;
  std::vector<NamedCommunicator> transports;
  std::vector<ExchangeContender> exchanges;
};

Contenders make_contenders(const NetworkOptions& o) {
  Contenders c;
  for (const std::string& name : apps::transport_names()) {
    const bool is_mpi = name == "mpi";
    for (const comm::SparseAlgorithm algorithm : comm::kSparseAlgorithms) {
      if (!is_mpi && algorithm != comm::SparseAlgorithm::automatic) continue;
      c.owned.push_back(apps::make_communicator(
          {.name = name, .sparse_algorithm = algorithm, .ranks_per_node = o.ranks_per_node}));
      Communicator* comm = c.owned.back().get();
      if (algorithm == comm::SparseAlgorithm::automatic) {
        c.transports.push_back({name, comm});
        c.exchanges.push_back({fmt::format("{} exchange, sizes known", name), comm, true});
      }
      c.exchanges.push_back({is_mpi ? fmt::format("mpi sparse, {}", comm::name_of(algorithm))
                                    : fmt::format("{} sparse", name),
                             comm, false});
    }
  }
  return c;
}

nlohmann::json measure_exchanges(const NetworkOptions& o, const Contenders& c) {
  Communicator& control = *c.transports.front().comm;
  const int rank = control.rank(), size = control.size();
  std::vector<Traffic> traffics = {dense_traffic(rank, size)};
  if (o.peers < size - 1) traffics.push_back(sparse_traffic(rank, size, o.peers));
  if (rank == 0) {
    fmt::print(
        "\nOne message per pair; median of the slowest rank\n{:<18}{:>8}  {:<30}{:>12}{:>12}"
        "{:>12}\n",
        "traffic", "bytes", "how", "us", "x alltoallv", "x both");
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const Traffic& traffic : traffics) {
    for (const int64_t bytes : o.sizes) {
      if (bytes * std::ssize(traffic.receivers) > kMostDenseBytes) continue;
      for (auto& row : measure_exchange(control, traffic, bytes, c.exchanges, o.effort)) {
        rows.push_back(std::move(row));
      }
    }
  }
  return rows;
}

ExitCode bench_network(NetworkOptions o, const comm::MpiEnvironment& environment) {
  if (environment.size() < 2) {
    fail(ExitCode::usage,
         "airmoe-bench network needs 2 ranks or more: mpirun -n 2 airmoe-bench "
         "network");
  }
  const comm::NodeMap nodes = comm::find_nodes(o.ranks_per_node);
  const Contenders c = make_contenders(o);
  Communicator& control = *c.transports.front().comm;
  const bool prints = control.rank() == 0;
  const std::vector<RankPair> pairs = rank_pairs(nodes);
  const auto cases = static_cast<double>(kPingPongSizes.size() * pairs.size() +
                                         kAllReduceSizes.size() + 2 * o.sizes.size() + 2);
  o.effort.case_seconds = o.seconds / cases;
  if (prints) {
    fmt::print("{} ranks on {} node{}, {}\n", control.size(), nodes.num_nodes(),
               nodes.num_nodes() == 1 ? "" : "s", comm::mpi_library_version());
  }

  nlohmann::json j = {{"benchmark", "network"},
                      {"ranks", control.size()},
                      {"nodes", nodes.num_nodes()},
                      {"ranks_per_node", o.ranks_per_node},
                      {"mpi", comm::mpi_library_version()},
                      {"transport", o.transport}};
  const double memory = measure_memory_bandwidth(control, o.effort);
  const double flops = measure_flops(control, o.effort);
  if (prints) {
    fmt::print("memory copy {:.2f} GB/s, matrix product {:.1f} GFLOP/s, per rank, all at once\n",
               memory * 1e-9, flops * 1e-9);
  }
  j["memory_bandwidth_bytes_per_s"] = memory;
  j["flops"] = flops;
  j["blas"] = blas::description();
  j["ping_pong"] = nlohmann::json::array();
  for (const RankPair& pair : pairs) {
    std::vector<LinkConstants> constants;
    for (auto& row : measure_pair(pair, c.transports, kPingPongSizes, o.effort, constants)) {
      j["ping_pong"].push_back(std::move(row));
    }
    for (std::size_t i = 0; i < constants.size(); ++i) {
      const nlohmann::json entry = {{"latency_s", constants[i].latency_s},
                                    {"bandwidth_bytes_per_s", constants[i].bandwidth_bytes_per_s}};
      j["pairs"][pair.name][c.transports[i].name] = entry;
      // The cost model's constants are those of the farthest class of pairs.
      if (c.transports[i].name == o.transport) j.update(entry);
    }
  }
  if (prints) {
    fmt::print("\nall_reduce of floats, us\n{:>8}", "bytes");
    for (const auto& t : c.transports) fmt::print("{:>15}", t.name);
    fmt::print("\n");
  }
  j["all_reduce"] = nlohmann::json::array();
  for (const int64_t bytes : kAllReduceSizes) {
    for (auto& row : measure_all_reduce(control, bytes, c.transports, o.effort)) {
      j["all_reduce"].push_back(std::move(row));
    }
  }
  j["exchange"] = measure_exchanges(o, c);
  if (!prints) return ExitCode::ok;
  write_json(o.json, j);
  nlohmann::json constants;
  for (const char* key :
       {"benchmark", "ranks", "nodes", "transport", "latency_s", "bandwidth_bytes_per_s",
        "memory_bandwidth_bytes_per_s", "flops", "pairs"}) {
    constants[key] = j[key];
  }
  write_json(o.network, constants);
  return ExitCode::ok;
}

}  // namespace

ExitCode run_network(int argc, char** argv) {
  NetworkOptions o;
  po::options_description options("Network", 100, 60);
  add_count(options, "repetitions", o.effort.repetitions, 1, "samples of each case at most");
  add_count(options, "warm-up", o.effort.warm_up, 0, "samples before those");
  add_count(options, "peers", o.peers, 1, "ranks that each rank talks to in sparse traffic");
  add_count(options, "ranks-per-node", o.ranks_per_node, 0,
            "every run of N ranks plays a node; 0: nodes are the machines");
  const auto check_seconds = [](double seconds) {
    if (!(seconds > 0)) fail(ExitCode::usage, "--seconds {}: give seconds above 0", seconds);
  };
  options.add_options()("seconds",
                        po::value(&o.seconds)
                            ->value_name("SECONDS")
                            ->default_value(o.seconds)
                            ->notifier(check_seconds),
                        "time to aim at for the whole run");
  options.add_options()(
      "sizes",
      po::value<std::string>()
          ->value_name("LIST")
          ->default_value(fmt::format("{}", fmt::join(o.sizes, ",")))
          ->notifier([&o](const std::string& text) { o.sizes = parse_sizes(text); }),
      "bytes of a message in exchanges");
  const auto check_transport = [](const std::string& name) { apps::check_transport(name); };
  options.add_options()("transport",
                        po::value(&o.transport)
                            ->value_name("NAME")
                            ->default_value(o.transport)
                            ->notifier(check_transport),
                        "whose latency and bandwidth become the cost model's constants");
  options.add_options()("json", po::value(&o.json)->value_name("FILE"), "write all results there");
  options.add_options()("network", po::value(&o.network)->value_name("FILE"),
                        "write the constants of the cost model there, for --network of others");
  comm::MpiEnvironment environment(&argc, &argv);
  const int code = apps::run_main("airmoe-bench network", environment, [&] {
    const char* about =
        "Messages between ranks, sparse exchange against MPI_Alltoallv, constants of the cost "
        "model. Start it with mpirun.";
    if (!parse(argc, argv, about, options, environment.rank() == 0)) return ExitCode::ok;
    return bench_network(o, environment);
  });
  return static_cast<ExitCode>(code);
}

}  // namespace airmoe::bench
