// airmoe-bench: what the pieces cost on this machine.

#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "comm/base/blas.hpp"
#include "comm/base/error.hpp"

namespace airmoe::bench {
namespace {

constexpr Command kCommands[] = {
    {"kernels", "panel products, selection and experts against BLAS and the machine's limits",
     run_kernels},
    {"expert-paths", "both expert paths over many shapes, against the cost model",
     run_expert_paths},
};

void print_usage() {
  fmt::print("Usage: airmoe-bench COMMAND [options]\n\nCommands:\n");
  for (const Command& command : kCommands)
    fmt::print("  {:<14}{}\n", command.name, command.summary);
  fmt::print("\nairmoe-bench COMMAND --help lists the options of a command.\n");
}

int run(int argc, char** argv) {
  if (argc < 2) {
    print_usage();
    return static_cast<int>(ExitCode::usage);
  }
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h") {
    print_usage();
    return 0;
  }
  const std::vector<std::string> arguments(argv + 2, argv + argc);
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(arguments);
  }
  fail(ExitCode::usage, "unknown command '{}'; airmoe-bench --help lists the commands", name);
}

}  // namespace
}  // namespace airmoe::bench

int main(int argc, char** argv) {
  try {
    airmoe::blas::prepare_process(argv);
    return airmoe::bench::run(argc, argv);
  } catch (const airmoe::Error& error) {
    fmt::print(stderr, "airmoe-bench: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "airmoe-bench: {}\n", error.what());
    return static_cast<int>(airmoe::ExitCode::failure);
  }
}
