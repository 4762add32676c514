#include "apps/bench/options.hpp"

#include <fmt/format.h>

#include "apps/common/options.hpp"
#include "comm/base/error.hpp"

namespace airmoe::bench {

namespace po = boost::program_options;

void add_count(po::options_description& options, const char* name, int64_t& value, int64_t least,
               const char* help) {
  const auto check = [name, least](int64_t given) {
    if (given < least) fail(ExitCode::usage, "--{} {}: must be at least {}", name, given, least);
  };
  options.add_options()(
      name, po::value(&value)->value_name("N")->default_value(value)->notifier(check), help);
}

void add_layer_shape(po::options_description& options, scheduler::ModelConfig& model) {
  add_count(options, "dim", model.dim, 1, "model width d");
  add_count(options, "experts", model.experts, 1, "experts E");
  add_count(options, "active", model.active, 1, "active experts K per token");
  add_count(options, "shortlist", model.shortlist, 1, "candidates M per codeword");
  add_count(options, "codewords", model.codewords, 1, "codewords G");
  add_count(options, "expert-dim", model.expert_dim, 1, "hidden units m per expert");
}

void add_run_options(po::options_description& options, Repeats& repeats, uint64_t& seed,
                     std::string& json) {
  add_count(options, "repetitions", repeats.repetitions, 1, "timed repetitions");
  add_count(options, "warm-up", repeats.warm_up, 0, "repetitions before those");
  const auto set_clock = [&repeats](const std::string& name) {
    if (name != "processor" && name != "wall") {
      fail(ExitCode::usage, "--clock {}: give processor or wall", name);
    }
    repeats.clock = name == "wall" ? Clock::wall : Clock::processor;
  };
  options.add_options()("clock",
                        po::value<std::string>()
                            ->value_name("CLOCK")
                            ->default_value("processor")
                            ->notifier(set_clock),
                        "processor: time on a core, steady on a busy machine; or wall")(
      "seed", po::value(&seed)->value_name("N")->default_value(seed), "seed of the random data")(
      "json", po::value(&json)->value_name("FILE"), "write the results there too");
}

bool parse(int argc, char** argv, const std::string& about, const po::options_description& options,
           bool print) {
  const apps::Usage usage{.program = "airmoe-bench",
                          .synopsis = fmt::format("airmoe-bench {} [OPTIONS]", argv[0]),
                          .about = about};
  return apps::parse_options(argc, argv, usage, options, "", print).has_value();
}

}  // namespace airmoe::bench
