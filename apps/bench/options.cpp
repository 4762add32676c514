#include "apps/bench/options.hpp"

#include <sstream>
#include <vector>

#include <fmt/format.h>

#include "comm/base/error.hpp"

namespace airmoe::bench {

namespace po = boost::program_options;

bool parse_options(const std::string& command, po::options_description& options,
                   Arguments arguments) {
  options.add_options()("help,h", "print this text");
  po::variables_map values;
  try {
    const std::vector<std::string> list(arguments.begin(), arguments.end());
    po::store(po::command_line_parser(list).options(options).positional({}).run(), values);
    if (values.contains("help")) {
      std::ostringstream text;
      text << options;
      fmt::print("Usage: airmoe-bench {} [options]\n\n{}", command, text.str());
      return false;
    }
    po::notify(values);
  } catch (const po::error& error) {
    fail(ExitCode::usage, "{}; airmoe-bench {} --help lists the options", error.what(), command);
  }
  return true;
}

void add_count(po::options_description& options, const char* name, int64_t& value, int64_t least,
               const char* help) {
  const auto check = [name, least](int64_t given) {
    if (given < least) fail(ExitCode::usage, "--{} {}: must be at least {}", name, given, least);
  };
  options.add_options()(name, po::value(&value)->default_value(value)->notifier(check), help);
}

}  // namespace airmoe::bench
