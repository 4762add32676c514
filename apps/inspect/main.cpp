// airmoe-inspect: what a checkpoint or a trace holds, and whether it is right.

#include <filesystem>

#include <fmt/format.h>

#include "apps/common/options.hpp"
#include "apps/common/run_main.hpp"
#include "apps/inspect/report.hpp"
#include "comm/base/error.hpp"
#include "scheduler/store/trace.hpp"

namespace airmoe::inspect {

namespace {

namespace po = boost::program_options;

struct Options {
  std::string file;
  bool verify = false;
  bool quick = false;
  bool json = false;
};

std::optional<Options> parse(int argc, char** argv) {
  Options o;
  po::options_description options("Inspection", 100, 60);
  options.add_options()("file", po::value(&o.file)->value_name("FILE"),
                        "checkpoint or trace; the name of the option may be left out")(
      "verify", po::bool_switch(&o.verify), "print the verdict and the problems only")(
      "quick", po::bool_switch(&o.quick), "read attributes and shapes, not the data")(
      "json", po::bool_switch(&o.json), "print one JSON object");
  const apps::Usage usage = {
      "airmoe-inspect", "airmoe-inspect [OPTIONS] FILE",
      "Prints what a checkpoint or trace holds and verifies it: every checksum, finite values,\n"
      "shortlists; of a trace also codewords, selection, gates and outputs, recomputed in double\n"
      "precision. Ends with 0 when all is good, 65 when not."};
  if (!apps::parse_options(argc, argv, usage, options, "file", true)) return std::nullopt;
  if (o.file.empty()) fail(ExitCode::usage, "no FILE given; --help lists all options");
  if (o.verify && o.quick) fail(ExitCode::usage, "--verify reads the data, --quick does not");
  if (std::filesystem::is_directory(o.file)) {
    fail(ExitCode::usage, "{} is a directory; name one of its files", o.file);
  }
  return o;
}

void read_data(const scheduler::StoredFile& file, Json& report, Problems& problems) {
  scheduler::StoredData data(file);
  report["verified"] = verify_blocks(file, data, problems);
  report["moe_layers"] = summarise_moe_layers(file, data, problems);
  if (file.format == scheduler::kTraceFormat) {
    report["recomputed"] = check_traces(file, data, problems);
  }
}

ExitCode run(int argc, char** argv) {
  const auto options = parse(argc, argv);
  if (!options) return ExitCode::ok;
  const scheduler::StoredFile file = scheduler::read_stored_file(options->file);
  Json report = describe(file);
  Problems problems;
  if (!options->quick) read_data(file, report, problems);
  report["problems"] = problems;
  report["good"] = problems.empty();
  if (options->json) {
    fmt::print("{}\n", report.dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (!options->verify) {
    fmt::print("{}", as_text(report));
  } else {
    for (const auto& problem : problems) fmt::print("problem: {}\n", problem);
    if (problems.empty()) fmt::print("{}: good\n", options->file);
  }
  std::fflush(stdout);
  if (!problems.empty()) {
    fail(ExitCode::bad_data, "{}: {} problem{}, the first: {}", options->file, problems.size(),
         problems.size() == 1 ? "" : "s", problems.front());
  }
  return ExitCode::ok;
}

}  // namespace

}  // namespace airmoe::inspect

int main(int argc, char** argv) {
  return airmoe::apps::run_main("airmoe-inspect", [&] { return airmoe::inspect::run(argc, argv); });
}
