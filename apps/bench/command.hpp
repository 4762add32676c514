#pragma once
// The subcommands of airmoe-bench. To add one: a file with its run function, a declaration here and
// a line in the table of main.cpp.

#include "comm/base/error.hpp"

namespace airmoe::bench {

struct Command {
  const char* name;
  const char* summary;                     ///< one line for --help
  ExitCode (*run)(int argc, char** argv);  ///< argv[0] is the name; throws Error
};

ExitCode run_kernels(int argc, char** argv);
ExitCode run_expert_paths(int argc, char** argv);
ExitCode run_layer(int argc, char** argv);
ExitCode run_network(int argc, char** argv);
ExitCode run_exchange(int argc, char** argv);
ExitCode run_placement(int argc, char** argv);
// In builds with CUDA.
ExitCode run_router(int argc, char** argv);
ExitCode run_exchange_gpu(int argc, char** argv);
ExitCode run_layer_gpu(int argc, char** argv);
ExitCode run_trunk_gpu(int argc, char** argv);
ExitCode run_attention(int argc, char** argv);

}  // namespace airmoe::bench
