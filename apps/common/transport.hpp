#pragma once
// The communicator that a program runs on, by name.

#include <memory>
#include <string>
#include <vector>

#include <boost/program_options.hpp>

#include "comm/communicator.hpp"
#include "comm/sparse_algorithm.hpp"

namespace airmoe::apps {

struct Transport {
  std::string name = "mpi";
  double deadline_seconds = 600;  ///< longest wait inside one call
  comm::SparseAlgorithm sparse_algorithm = comm::SparseAlgorithm::automatic;
  int64_t ranks_per_node = 0;  ///< 0: nodes are the machines
};

/// Local: names of the transports that this build has; "mpi" is the first.
std::vector<std::string> transport_names();

/// Local: throws Error(ExitCode::usage) for a name that is not among transport_names().
void check_transport(const std::string& name);

/// Adds --transport, --sparse-algorithm and --ranks-per-node, which write to `transport`; bad
/// values throw Error(ExitCode::usage) while parsing. `transport` outlives the parsing.
void add_transport_options(boost::program_options::options_description& options,
                           Transport& transport);

/// Collective over all ranks of the run; needs a live MpiEnvironment, which must outlive the
/// result. Throws Error(ExitCode::usage) for a name that is not among transport_names().
std::unique_ptr<comm::Communicator> make_communicator(const Transport& transport);

}  // namespace airmoe::apps
