#pragma once
// Options of airmoe-study.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/traffic/cost_model.hpp"
#include "scheduler/traffic/step_traffic.hpp"
#include "scheduler/traffic/synthetic.hpp"

namespace airmoe::study {

struct Options {
  std::string trace;  ///< file; empty: synthetic
  std::optional<int64_t> step, layer, trace_experts;
  scheduler::SyntheticRouting synthetic;

  /// What the command line says about the model; a trace fills in the rest.
  std::optional<int64_t> dim, expert_dim;
  std::optional<std::string> activation, sum_precision;
  std::optional<double> jitter, balance_weight;

  std::vector<int64_t> ranks;
  std::vector<double> budgets;           ///< empty: a sweep
  std::vector<int64_t> tokens_per_rank;  ///< 0: the tokens of the trace, spread evenly
  int64_t sequence = 256;
  int micro_batches = 1;
  uint64_t seed = 1;
  bool by_bytes = false;  ///< choose plans and strategies by bytes instead of time
  scheduler::MachineConstants machine;

  bool run = false;
  int64_t run_steps = 3;
  double deadline_seconds = 600;

  std::string csv, hdf5, plots;
  bool progress = false;
};

/// std::nullopt after --help or --version. Throws Error(ExitCode::usage) naming option, value and
/// remedy.
std::optional<Options> parse_study_options(int argc, char** argv, bool print);

}  // namespace airmoe::study
