#pragma once
// Options that the subcommands share.

#include <cstdint>
#include <string>

#include <boost/program_options.hpp>

#include "apps/bench/timing.hpp"
#include "scheduler/model_config.hpp"

namespace airmoe::bench {

/// Adds "--name N (=default)  help" for an integer of at least `least`, checked while parsing.
void add_count(boost::program_options::options_description& options, const char* name,
               int64_t& value, int64_t least, const char* help);

/// --dim, --experts, --active, --shortlist, --codewords and --expert-dim of an MoE layer.
void add_layer_shape(boost::program_options::options_description& options,
                     scheduler::ModelConfig& model);

/// --repetitions, --warm-up, --clock, --seed and --json.
void add_run_options(boost::program_options::options_description& options, Repeats& repeats,
                     uint64_t& seed, std::string& json);

/// Parses the options of a subcommand; false after --help or --version, which it prints (`print`:
/// on one rank only).
bool parse(int argc, char** argv, const std::string& about,
           const boost::program_options::options_description& options, bool print = true);

}  // namespace airmoe::bench
