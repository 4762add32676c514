#include "apps/common/transport.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "comm/base/error.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/ucx_communicator.hpp"

namespace airmoe::apps {

namespace po = boost::program_options;

std::vector<std::string> transport_names() {
  std::vector<std::string> names = {"mpi"};
  if (comm::has_ucx()) names.emplace_back("ucx");
  return names;
}

void check_transport(const std::string& name) {
  const std::vector<std::string> known = transport_names();
  if (std::find(known.begin(), known.end(), name) != known.end()) return;
  fail(ExitCode::usage, "--transport {}: this build has {}", name, fmt::join(known, ", "));
}

void add_transport_options(po::options_description& options, Transport& transport) {
  options.add_options()(
      "transport",
      po::value(&transport.name)
          ->value_name("NAME")
          ->default_value(transport.name)
          ->notifier(check_transport),
      fmt::format("what carries the messages: {}", fmt::join(transport_names(), " or ")).c_str());
  const auto set_algorithm = [&transport](const std::string& name) {
    transport.sparse_algorithm = comm::parse_sparse_algorithm(name, "--sparse-algorithm");
  };
  options.add_options()(
      "sparse-algorithm",
      po::value<std::string>()
          ->value_name("NAME")
          ->default_value(name_of(transport.sparse_algorithm))
          ->notifier(set_algorithm),
      "sparse exchange of transport mpi: automatic, pairwise, nbx, neighbour or node_aware");
  const auto check_ranks = [](int64_t ranks) {
    if (ranks < 0) fail(ExitCode::usage, "--ranks-per-node {}: must be at least 0", ranks);
  };
  options.add_options()("ranks-per-node",
                        po::value(&transport.ranks_per_node)
                            ->value_name("N")
                            ->default_value(transport.ranks_per_node)
                            ->notifier(check_ranks),
                        "for studies on one machine: every run of N ranks plays a node; 0: nodes "
                        "are the machines");
}

std::unique_ptr<comm::Communicator> make_communicator(const Transport& transport) {
  check_transport(transport.name);
  if (transport.name == "ucx") {
    if (transport.sparse_algorithm != comm::SparseAlgorithm::automatic) {
      fail(ExitCode::config,
           "--sparse-algorithm {}: this is for --transport mpi; ucx has one of its own",
           name_of(transport.sparse_algorithm));
    }
    return comm::make_ucx_communicator({.deadline_seconds = transport.deadline_seconds,
                                        .ranks_per_node = transport.ranks_per_node});
  }
  return comm::make_mpi_communicator({.deadline_seconds = transport.deadline_seconds,
                                      .sparse_algorithm = transport.sparse_algorithm,
                                      .ranks_per_node = transport.ranks_per_node});
}

}  // namespace airmoe::apps
