// airmoe-bench: what the pieces cost on this machine.

#include <string_view>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/version.hpp"
#include "comm/base/blas.hpp"

namespace airmoe::bench {
namespace {

constexpr Command kCommands[] = {
    {"kernels", "panel products, selection and experts against BLAS and the machine's limits",
     run_kernels},
    {"expert-paths", "both expert paths over many shapes, against the cost model",
     run_expert_paths},
    {"layer", "the distributed MoE layer against full scoring; start it with mpirun", run_layer},
    {"exchange", "a step of the MoE layer under each exchange strategy; start with mpirun",
     run_exchange},
    {"network",
     "messages between ranks, sparse exchange against MPI_Alltoallv; start it with mpirun",
     run_network},
    {"placement", "plans of who owns which expert and which ranks take whose tokens",
     run_placement},
#ifdef AIRMOE_HAS_CUDA
    {"router", "routing on a CUDA device, part by part", run_router},
    {"exchange-gpu", "rows of device memory between ranks, against NCCL; start with mpirun",
     run_exchange_gpu},
    {"layer-gpu", "the MoE layer on a CUDA device, forward and backward", run_layer_gpu},
    {"trunk-gpu", "the trunk on a CUDA device, in whole and part by part", run_trunk_gpu},
    {"attention", "causal attention on a CUDA device, forward and backward", run_attention},
#endif
};

void print_usage() {
  fmt::print("Usage: airmoe-bench COMMAND [options]\n\nCommands:\n");
  for (const Command& command : kCommands)
    fmt::print("  {:<14}{}\n", command.name, command.summary);
  fmt::print("\nairmoe-bench COMMAND --help lists the options of a command.\n");
}

ExitCode run(int argc, char** argv) {
  if (argc < 2) {
    print_usage();
    return ExitCode::usage;
  }
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h") {
    print_usage();
    return ExitCode::ok;
  }
  if (name == "--version") {
    fmt::print("airmoe-bench {}\n", apps::kVersion);
    return ExitCode::ok;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(argc - 1, argv + 1);
  }
  fail(ExitCode::usage, "unknown command '{}'; airmoe-bench --help lists the commands", name);
}

}  // namespace
}  // namespace airmoe::bench

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  return airmoe::apps::run_main("airmoe-bench", [&] { return airmoe::bench::run(argc, argv); });
}
