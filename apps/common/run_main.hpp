#pragma once
// What every main() does: start, catch, print once, leave with the right code on every rank.

#include <functional>
#include <string>

#include "comm/base/error.hpp"
#include "comm/mpi_environment.hpp"

namespace airmoe::apps {

/// For programs of one process. Prints "<program>: error: <message>" on an exception.
/// @return the exit code
int run_main(const std::string& program, const std::function<ExitCode()>& body);

/// For programs of many ranks. An error that every rank has is printed by rank 0; one that others
/// do not share within a few seconds, or a missed deadline, is printed by each rank that has it,
/// and all ranks are ended.
int run_main(const std::string& program, comm::MpiEnvironment& environment,
             const std::function<ExitCode()>& body);

}  // namespace airmoe::apps
