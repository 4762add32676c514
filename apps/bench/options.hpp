#pragma once
// Options of a subcommand.

#include <string>

#include <boost/program_options.hpp>

#include "apps/bench/command.hpp"

namespace airmoe::bench {

/// Parses `arguments`; returns false after printing the help that --help asks for. Adds --help to
/// `options`. Throws Error(ExitCode::usage) for anything unknown or malformed.
bool parse_options(const std::string& command, boost::program_options::options_description& options,
                   Arguments arguments);

/// Adds "--name N (default): help" for an integer of at least `least`, checked while parsing.
void add_count(boost::program_options::options_description& options, const char* name,
               int64_t& value, int64_t least, const char* help);

}  // namespace airmoe::bench
