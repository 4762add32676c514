#include "apps/study/study_options.hpp"

#include <algorithm>
#include <charconv>

#include <unistd.h>

#include "apps/common/options.hpp"
#include "comm/base/error.hpp"

namespace airmoe::study {

namespace {

namespace po = boost::program_options;

template <class T>
T parse_number(const char* option, const std::string& all, std::string_view text,
               const char* what) {
  T value{};
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
    fail(ExitCode::usage, "--{} {}: {}", option, all, what);
  }
  return value;
}

template <class T>
std::vector<T> parse_list(const char* option, const std::string& text, T least, T most,
                          const char* what) {
  std::vector<T> numbers;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = std::string_view(text).substr(begin, end - begin);
    const T value = parse_number<T>(option, text, item, what);
    if (!(value >= least && value <= most)) {
      fail(ExitCode::usage, "--{} {}: {} is not between {} and {}", option, text, item, least,
           most);
    }
    numbers.push_back(value);
    begin = end + 1;
  }
  return numbers;
}

struct Texts {
  std::string ranks, budgets, tokens, objective, progress, network;
};

template <class T>
void add(po::options_description& group, const char* name, const char* value_name, T& to,
         const std::string& help) {
  group.add_options()(name, po::value<T>(&to)->value_name(value_name), help.c_str());
}
template <class T>
void add(po::options_description& group, const char* name, const char* value_name,
         std::optional<T>& to, const std::string& help) {
  group.add_options()(
      name, po::value<T>()->value_name(value_name)->notifier([&to](const T& v) { to = v; }),
      help.c_str());
}

po::options_description input_group(Options& o, bool& synthetic) {
  po::options_description group("Routing", 100, 60);
  auto& s = o.synthetic;
  add(group, "trace", "FILE", o.trace, "HDF5 file of airmoe-train --trace");
  add(group, "step", "N", o.step, "optimizer step in the trace (the last)");
  add(group, "layer", "N", o.layer, "MoE layer in the trace (the first of the step)");
  group.add_options()("synthetic", po::bool_switch(&synthetic),
                      "made-up clustered routing instead of a trace");
  add(group, "experts", "N", o.trace_experts,
      "E: of synthetic routing (65536), or of a trace that does not say");
  add(group, "active", "N", s.active, "synthetic: K (512)");
  add(group, "shortlist", "N", s.length, "synthetic: M (2048)");
  add(group, "codewords", "N", s.codewords, "synthetic: G (512)");
  add(group, "tokens", "N", s.tokens, "synthetic: distinct tokens (8192)");
  add(group, "zipf", "X", s.zipf, "synthetic: exponent of codeword popularity (0.7)");
  add(group, "spread", "X", s.spread,
      "synthetic: distance of codewords and experts from their cluster's centre (1.4)");
  return group;
}

po::options_description model_group(Options& o) {
  po::options_description group("Model (defaults: what the trace says)", 100, 60);
  add(group, "dim", "N", o.dim, "model width d (256)");
  add(group, "expert-dim", "N", o.expert_dim, "m, hidden units of an expert (1)");
  add(group, "expert-activation", "NAME", o.activation, "gelu, silu, relu or swiglu (gelu)");
  add(group, "jitter", "X", o.jitter, "noise on scores; 0: token indices do not travel (0.01)");
  add(group, "balance-weight", "X", o.balance_weight,
      "balance loss; 0: neither its column nor usage counts travel (0.01)");
  add(group, "sum-precision", "NAME", o.sum_precision, "sums over ranks: f64 or f32 (f64)");
  return group;
}

po::options_description sweep_group(Options& o, Texts& t) {
  po::options_description group("What to count", 100, 60);
  add(group, "ranks", "LIST", t.ranks, "rank counts (2,4,8,16,32,64,128,256,512,1024)");
  add(group, "copy-budget", "LIST", t.budgets,
      "rows per rank as multiples of E / ranks, for example 1.5,2,4; auto: sweep and mark the best "
      "(auto)");
  add(group, "tokens-per-rank", "LIST", t.tokens,
      "tokens per rank and micro-batch, made by repeating the trace; 0: its own tokens, spread "
      "evenly (8192)");
  add(group, "sequence", "N", o.sequence, "tokens in a row that are repeated together (256)");
  add(group, "micro-batches", "N", o.micro_batches, "of an optimizer step (1)");
  add(group, "seed", "N", o.seed,
      "of synthetic routing, random placement and the order of repeated sequences (1)");
  add(group, "objective", "NAME", t.objective,
      "time or bytes: what `best` and `auto` minimise (time)");
  return group;
}

po::options_description machine_group(Options& o, Texts& t) {
  po::options_description group("Machine, per rank", 100, 60);
  auto& m = o.machine;
  add(group, "network", "FILE", t.network, "JSON of airmoe-bench network: sets the next four");
  add(group, "latency", "SECONDS", m.latency_s, "per message (5e-6)");
  add(group, "bandwidth", "BYTES/S", m.bandwidth_bytes_per_s, "each way (12.5e9)");
  add(group, "memory-bandwidth", "BYTES/S", m.memory_bandwidth_bytes_per_s, "(100e9)");
  add(group, "flops", "FLOP/S", m.flops, "single precision (1e12)");
  return group;
}

po::options_description run_group(Options& o) {
  po::options_description group("Run", 100, 60);
  group.add_options()("run", po::bool_switch(&o.run),
                      "under mpirun: run the strategies on made-up tokens and compare the bytes "
                      "that were counted with the prediction. Defaults are then E 16384, K 64, M "
                      "512, G 128, d 64, 512 tokens per rank, budgets 2 and 4");
  add(group, "run-steps", "N", o.run_steps, "steps to take the median time of (3)");
  add(group, "deadline", "SECONDS", o.deadline_seconds,
      "longest wait for other ranks inside one call (600)");
  return group;
}

// Shapes that take seconds rather than minutes.
void set_run_defaults(Options& o, Texts& t) {
  o.trace_experts = 16384;
  o.synthetic.active = 64;
  o.synthetic.length = 512;
  o.synthetic.codewords = 128;
  t.tokens = "512";
}

po::options_description output_group(Options& o, Texts& t) {
  po::options_description group("Output", 100, 60);
  add(group, "csv", "FILE", o.csv, "all rows with bytes of every channel");
  add(group, "hdf5", "FILE", o.hdf5, "the same as arrays");
  add(group, "plots", "DIR", o.plots, "write DIR/study.csv and say how to plot it");
  add(group, "progress", "WHEN", t.progress,
      "progress line: auto (on a terminal), always or never (auto)");
  return group;
}

bool show_progress(const std::string& when) {
  if (when == "always") return true;
  if (when == "never") return false;
  if (when != "auto") fail(ExitCode::usage, "--progress {}: give auto, always or never", when);
  return isatty(STDERR_FILENO) != 0;
}

void check(Options& o, bool synthetic, const po::variables_map& given) {
  if (o.trace.empty() && !synthetic && !o.run) {
    fail(ExitCode::usage, "give --trace FILE or --synthetic; --help lists all options");
  }
  if (!o.trace.empty() && (synthetic || o.run)) {
    fail(ExitCode::usage, "--trace {}: not together with --{}", o.trace,
         synthetic ? "synthetic" : "run");
  }
  for (const char* option : {"active", "shortlist", "codewords", "tokens", "zipf", "spread"}) {
    if (!o.trace.empty() && given.count(option) != 0) {
      fail(ExitCode::usage, "--{} shapes synthetic routing; a trace has its own", option);
    }
  }
  for (const char* option : {"step", "layer"}) {
    if (o.trace.empty() && given.count(option) != 0) {
      fail(ExitCode::usage, "--{} chooses from a trace; give --trace FILE", option);
    }
  }
  if (o.run && (!o.hdf5.empty() || !o.plots.empty())) {
    fail(ExitCode::usage, "--run prints its table and writes --csv, neither --hdf5 nor --plots");
  }
  if (o.run && o.tokens_per_rank.front() == 0) {
    fail(ExitCode::usage, "--tokens-per-rank 0: --run makes its own tokens, give at least 1");
  }
  if (!o.run && (given.count("run-steps") != 0 || given.count("deadline") != 0)) {
    fail(ExitCode::usage, "--run-steps and --deadline are for --run");
  }
  if (o.trace_experts) o.synthetic.experts = *o.trace_experts;
  o.synthetic.seed = o.seed;
  if (o.trace.empty()) o.synthetic.validate();
  const auto at_least_1 = [](const char* name, int64_t value) {
    if (value < 1) fail(ExitCode::usage, "--{} {}: at least 1", name, value);
  };
  at_least_1("sequence", o.sequence);
  at_least_1("micro-batches", o.micro_batches);
  at_least_1("run-steps", o.run_steps);
  if (o.dim) at_least_1("dim", *o.dim);
  if (o.expert_dim) at_least_1("expert-dim", *o.expert_dim);
  if (o.sum_precision && *o.sum_precision != "f64" && *o.sum_precision != "f32") {
    fail(ExitCode::usage, "--sum-precision {}: give f64 or f32", *o.sum_precision);
  }
  if (!(o.deadline_seconds > 0)) {
    fail(ExitCode::usage, "--deadline {}: more than 0 seconds", o.deadline_seconds);
  }
  o.machine.validate();
}

}  // namespace

std::optional<Options> parse_study_options(int argc, char** argv, bool print) {
  Options o;
  Texts t{"2,4,8,16,32,64,128,256,512,1024", "auto", "8192", "time", "auto", ""};
  bool synthetic = false;
  const auto is_run = [](const char* word) { return std::string_view(word) == "--run"; };
  if (std::any_of(argv, argv + argc, is_run)) set_run_defaults(o, t);
  po::options_description all("Options", 100, 60);
  all.add(input_group(o, synthetic)).add(model_group(o)).add(sweep_group(o, t));
  all.add(machine_group(o, t)).add(run_group(o)).add(output_group(o, t));
  const apps::Usage usage = {
      "airmoe-study", "airmoe-study --trace FILE [OPTIONS]",
      "Counts what every exchange strategy and some other libraries would send, for many rank\n"
      "counts and copy budgets, from the routing in a trace, and predicts the time of a step.\n"
      "One process; docs/study.md says how to read the table."};
  const auto given = apps::parse_options(argc, argv, usage, all, "", print);
  if (!given) return std::nullopt;
  constexpr const char* kWhole = "give whole numbers separated by commas, for example 2,16,64";
  o.ranks = parse_list<int64_t>("ranks", t.ranks, 1, 32767, kWhole);
  o.tokens_per_rank = parse_list<int64_t>("tokens-per-rank", t.tokens, 0, int64_t{1} << 24, kWhole);
  if (t.budgets != "auto") {
    o.budgets =
        parse_list<double>("copy-budget", t.budgets, 1.0, 32767.0,
                           "give numbers separated by commas, for example 1.5,2,4, or auto");
  }
  if (t.objective != "time" && t.objective != "bytes") {
    fail(ExitCode::usage, "--objective {}: give time or bytes", t.objective);
  }
  o.by_bytes = t.objective == "bytes";
  o.progress = show_progress(t.progress);
  if (!t.network.empty()) {
    const scheduler::MachineConstants said = o.machine;
    o.machine = scheduler::read_machine_constants(t.network, said);
    if (given->count("latency") != 0) o.machine.latency_s = said.latency_s;
    if (given->count("bandwidth") != 0)
      o.machine.bandwidth_bytes_per_s = said.bandwidth_bytes_per_s;
    if (given->count("memory-bandwidth") != 0) {
      o.machine.memory_bandwidth_bytes_per_s = said.memory_bandwidth_bytes_per_s;
    }
    if (given->count("flops") != 0) o.machine.flops = said.flops;
  }
  check(o, synthetic, *given);
  return o;
}

}  // namespace airmoe::study
