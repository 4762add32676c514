#pragma once
// Command line and --config file, the same way in every program.

#include <optional>
#include <string>

#include <boost/program_options.hpp>

namespace airmoe::apps {

struct Usage {
  std::string program;   ///< airmoe-train
  std::string synopsis;  ///< airmoe-train [OPTIONS]
  std::string about;     ///< one or two lines
};

/// Parses the command line, then the file named by --config (ini: one "option = value" per line, #
/// for comments; what the command line gives wins). --help, --version and --config are added to
/// `options`.
/// @param positional  option that takes words without a name, or "" for none
/// @return nullopt after --help or --version, whose text is printed when `print`
/// Throws Error(ExitCode::usage) that names the option, its value and, for an unknown one, the
/// nearest known.
std::optional<boost::program_options::variables_map> parse_options(
    int argc, char** argv, const Usage& usage,
    const boost::program_options::options_description& options, const std::string& positional,
    bool print);

}  // namespace airmoe::apps
