#include "apps/common/options.hpp"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <numeric>

#include "apps/common/version.hpp"
#include "comm/base/error.hpp"

namespace airmoe::apps {

namespace po = boost::program_options;

namespace {

// Insertions, deletions and substitutions between two words.
std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

std::string nearest(const std::string& name, const po::options_description& options) {
  std::string best;
  std::size_t distance = 1 + name.size() / 2;
  for (const auto& option : options.options()) {
    const std::size_t d = edit_distance(name, option->long_name());
    if (d < distance) {
      distance = d;
      best = option->long_name();
    }
  }
  return best;
}

[[noreturn]] void fail_unknown(const std::string& name, const po::options_description& options,
                               const std::string& where) {
  const std::string like = nearest(name, options);
  fail(ExitCode::usage, "{}unknown option --{}{}; --help lists all options", where, name,
       like.empty() ? "" : fmt::format(" (did you mean --{}?)", like));
}

std::string without_dashes(std::string name) {
  name.erase(0, name.find_first_not_of('-'));
  return name.substr(0, name.find('='));
}

// Turns Boost's exceptions into ours; `where` names the file, if any.
template <class Parse>
void translate(const po::options_description& options, const std::string& where, Parse&& parse) {
  try {
    parse();
  } catch (const po::unknown_option& e) {
    fail_unknown(without_dashes(e.get_option_name()), options, where);
  } catch (const po::validation_error& e) {
    fail(ExitCode::usage, "{}{}", where, e.what());
  } catch (const po::error& e) {
    fail(ExitCode::usage, "{}{}; --help lists all options", where, e.what());
  }
}

}  // namespace

std::optional<po::variables_map> parse_options(int argc, char** argv, const Usage& usage,
                                               const po::options_description& options,
                                               const std::string& positional, bool print) {
  po::options_description general("General", 100, 60);
  general.add_options()("config", po::value<std::string>()->value_name("FILE"),
                        "file with one option = value per line; the command line wins")(
      "help,h", "print this and end")("version", "print the version and end");
  po::options_description all("Options", 100, 60);
  all.add(options).add(general);
  // Words that no option takes land in one that --help does not show, to be named.
  constexpr const char* kStray = "stray-word";
  po::options_description parsed;
  parsed.add(all).add_options()(kStray, po::value<std::vector<std::string>>());
  po::positional_options_description words;
  words.add(positional.empty() ? kStray : positional.c_str(), -1);

  po::variables_map given;
  translate(all, "", [&] {
    po::store(
        po::command_line_parser(argc, argv)
            .options(parsed)
            .positional(words)
            .style(po::command_line_style::unix_style & ~po::command_line_style::allow_guessing)
            .run(),
        given);
  });
  if (given.count(kStray) != 0) {
    fail(ExitCode::usage, "'{}' belongs to no option; --help lists all options",
         given[kStray].as<std::vector<std::string>>().front());
  }
  if (given.count("help") != 0) {
    if (print) std::cout << "Usage: " << usage.synopsis << "\n\n" << usage.about << "\n\n" << all;
    return std::nullopt;
  }
  if (given.count("version") != 0) {
    if (print) std::cout << usage.program << ' ' << kVersion << '\n';
    return std::nullopt;
  }
  if (given.count("config") != 0) {
    const std::string path = given["config"].as<std::string>();
    std::ifstream file(path);
    if (!file) fail(ExitCode::usage, "--config {}: cannot read this file", path);
    translate(all, path + ": ", [&] { po::store(po::parse_config_file(file, all), given); });
  }
  translate(all, "", [&] { po::notify(given); });
  return given;
}

}  // namespace airmoe::apps
