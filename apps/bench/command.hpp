#pragma once
// The subcommands of airmoe-bench. To add one: a file with its run function, a declaration here and
// a line in the table of main.cpp.

#include <span>
#include <string>

namespace airmoe::bench {

using Arguments = std::span<const std::string>;  ///< what follows the subcommand's name

struct Command {
  const char* name;
  const char* summary;              ///< one line for --help
  int (*run)(Arguments arguments);  ///< returns the exit code; throws Error
};

int run_kernels(Arguments arguments);
int run_expert_paths(Arguments arguments);

}  // namespace airmoe::bench
