// airmoe-bench placement: how long plans take and how good they are.

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <span>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/machine.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "comm/base/error.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/report.hpp"
#include "scheduler/store/trace_reader.hpp"
#include "scheduler/traffic/plan_costs.hpp"

namespace airmoe::bench {
namespace {

using scheduler::Placement;
using scheduler::PlacementReport;
using scheduler::PlanInput;

struct Options {
  std::string trace;
  int64_t experts = 65536, codewords = 512, shortlist = 2048, active = 512, dim = 256, ranks = 64;
  int64_t tokens = 8192;  // per rank and step
  double budget = 4, change = 0.01;
  bool float_sums = false;
};

/// Lists and tokens per step over all ranks.
struct Lists {
  std::vector<int32_t> lists;
  std::vector<double> tokens;
};

/// Lists of codewords in themes of eight: four of five candidates from the theme's neighbourhood of
/// ids, the others from all experts, low ids more often. Tokens fall with rank to the power 0.7.
Lists synthetic_lists(const Options& o, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  const int64_t themes = std::max<int64_t>(1, o.codewords / 8);
  const int64_t width = std::max(o.experts / themes * 4, 2 * o.shortlist);
  Lists out;
  std::vector<char> listed(static_cast<std::size_t>(o.experts));
  for (int64_t g = 0; g < o.codewords; ++g) {
    const auto first = static_cast<int64_t>(random() % static_cast<uint64_t>(themes));
    const std::size_t begin = out.lists.size();
    while (std::ssize(out.lists) < (g + 1) * o.shortlist) {
      const double u = uniform();
      const int64_t e = uniform() < 0.8
                            ? (first * (o.experts / themes) +
                               static_cast<int64_t>(u * static_cast<double>(width))) %
                                  o.experts
                            : static_cast<int64_t>(u * u * u * static_cast<double>(o.experts));
      if (listed[e]) continue;
      listed[e] = 1;
      out.lists.push_back(static_cast<int32_t>(e));
    }
    for (std::size_t i = begin; i < out.lists.size(); ++i) listed[out.lists[i]] = 0;
    out.tokens.push_back(std::pow(1 + uniform() * static_cast<double>(o.codewords), -0.7));
  }
  return out;
}

Lists traced_lists(Options& o) {
  const scheduler::RoutingTrace trace = scheduler::read_routing(o.trace).routing;
  o.experts = trace.experts;
  o.codewords = trace.codewords();
  o.shortlist = trace.length;
  o.active = trace.active;
  const std::vector<int64_t> tokens = trace.histogram();
  return {trace.lists, {tokens.begin(), tokens.end()}};
}

/// The lists with a share of the entries of every list, or that share of the lists as a whole,
/// replaced by other experts.
std::vector<int32_t> changed_lists(const PlanInput& input, double share, bool whole,
                                   uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> lists(input.lists.begin(), input.lists.end());
  std::vector<char> listed(static_cast<std::size_t>(input.experts));
  const auto every = static_cast<int64_t>(std::max(1.0, std::round(1 / share)));
  const auto entries =
      static_cast<int64_t>(std::min(share * static_cast<double>(input.length),
                                    static_cast<double>(input.experts - input.length)));
  for (int64_t g = 0; g < input.codewords; ++g) {
    if (whole && g % every != 0) continue;
    const auto list = std::span(lists).subspan(static_cast<std::size_t>(g * input.length),
                                               static_cast<std::size_t>(input.length));
    for (const int32_t e : list) listed[e] = 1;
    const int64_t count = whole ? std::min(input.length, input.experts - input.length) : entries;
    for (int64_t i = 0; i < count; ++i) {
      int64_t e = 0;
      do {
        e = static_cast<int64_t>(random() % static_cast<uint64_t>(input.experts));
      } while (listed[e]);
      const auto j = whole ? i : static_cast<int64_t>(random() % list.size());
      listed[list[j]] = 0;
      listed[e] = 1;
      list[j] = static_cast<int32_t>(e);
    }
    for (const int32_t e : list) listed[e] = 0;
  }
  return lists;
}

nlohmann::json describe(const char* name, const Timing& time, const PlanInput& input,
                        const Placement& placement, const Placement& before) {
  scheduler::check_placement(input, placement);
  const PlacementReport counted = scheduler::report(input, placement);
  const int64_t moved = scheduler::moved_homes(before, placement);
  int64_t copies = 0;
  for (const int64_t c : counted.copies) copies += c;
  fmt::print("{:<16}{:>9.3f}{:>9.2f}{:>9.2f}{:>8.3f}{:>9.3f}{:>9.3f}{:>11.4f}{:>11.4f}{:>9.2f}\n",
             name, time.median, counted.rows_mean, counted.rows_max, counted.mean_cover,
             counted.work_imbalance, counted.tokens_imbalance,
             1e-9 * (counted.token_bytes + counted.shared_bytes),
             1e-9 * (counted.copy_fetch_bytes + counted.copy_return_bytes),
             100.0 * static_cast<double>(moved) / static_cast<double>(input.experts));
  return {{"plan", name},
          {"seconds", time.median},
          {"least_seconds", time.least},
          {"parts", placement.parts()},
          {"copies", copies},
          {"rows_mean", counted.rows_mean},
          {"rows_max", counted.rows_max},
          {"mean_cover", counted.mean_cover},
          {"work_imbalance", counted.work_imbalance},
          {"tokens_imbalance", counted.tokens_imbalance},
          {"token_bytes", counted.token_bytes},
          {"shared_bytes", counted.shared_bytes},
          {"copy_fetch_bytes", counted.copy_fetch_bytes},
          {"copy_return_bytes", counted.copy_return_bytes},
          {"moved_homes", moved}};
}

void check(const Options& o) {
  if (o.shortlist > o.experts) {
    fail(ExitCode::config, "--shortlist {} --experts {}: a list cannot be longer than that",
         o.shortlist, o.experts);
  }
  if (!(o.change > 0) || o.change > 1) {
    fail(ExitCode::usage, "--change {}: give a share in (0, 1]", o.change);
  }
}

}  // namespace

ExitCode run_placement(int argc, char** argv) {
  namespace po = boost::program_options;
  Options o;
  Repeats repeats{.warm_up = 0, .repetitions = 3, .clock = Clock::processor};
  uint64_t seed = 1;
  std::string json;
  po::options_description options("Options");
  options.add_options()("trace", po::value(&o.trace)->value_name("FILE"),
                        "lists and tokens per codeword of a trace's last step; synthetic if not "
                        "given");
  add_count(options, "experts", o.experts, 1, "E, of synthetic lists");
  add_count(options, "codewords", o.codewords, 1, "G, of synthetic lists");
  add_count(options, "shortlist", o.shortlist, 1, "M, of synthetic lists");
  add_count(options, "active", o.active, 1, "K, for the bytes of scores");
  add_count(options, "dim", o.dim, 1, "d, for bytes");
  add_count(options, "ranks", o.ranks, 1, "R");
  add_count(options, "tokens", o.tokens, 1, "tokens per rank and optimizer step");
  options.add_options()("copy-budget",
                        po::value(&o.budget)->value_name("X")->default_value(o.budget),
                        "experts with a row on a rank, as a multiple of E / R; 1: no copies")(
      "change", po::value(&o.change)->value_name("SHARE")->default_value(o.change),
      "share of list entries, or of whole lists, that change before a replan")(
      "float-sums", po::bool_switch(&o.float_sums), "sums and gradients travel as floats");
  add_run_options(options, repeats, seed, json);
  if (!parse(argc, argv, "Times plans of a placement and counts what they cost.", options)) {
    return ExitCode::ok;
  }
  check(o);
  Lists made = o.trace.empty() ? synthetic_lists(o, seed) : traced_lists(o);
  double sum = 0;
  for (const double t : made.tokens) sum += t;
  for (double& t : made.tokens)
    t *= static_cast<double>(o.tokens * o.ranks) / std::max(sum, 1e-300);
  const scheduler::TrafficShape shape{
      .dim = o.dim,
      .sums = o.float_sums ? scheduler::SumPrecision::f32 : scheduler::SumPrecision::f64};
  PlanInput input{
      .ranks = static_cast<int>(std::min<int64_t>(o.ranks, 1 << 20)),
      .experts = o.experts,
      .codewords = o.codewords,
      .length = o.shortlist,
      .lists = made.lists,
      .tokens = made.tokens,
      .copy_budget = o.budget,
      .move_homes = true,
      .costs = scheduler::plan_costs(shape, std::min(o.active, o.shortlist), o.shortlist, 1)};

  fmt::print("{}: E {}, G {}, M {}, K {}, d {}, {} ranks, budget {}\n",
             o.trace.empty() ? "synthetic lists" : o.trace, o.experts, o.codewords, o.shortlist,
             o.active, o.dim, o.ranks, o.budget);
  fmt::print("{:<16}{:>9}{:>9}{:>9}{:>8}{:>9}{:>9}{:>11}{:>11}{:>9}\n", "plan", "seconds", "rows",
             "max", "cover", "work", "tokens", "token GB", "copy GB", "moved %");
  Placement plan, next;
  nlohmann::json results = nlohmann::json::array();
  const auto time = [&](const std::function<void()>& work) {
    return measure({{"", [&](int64_t) { work(); }}}, repeats).front();
  };
  const Timing planned = time([&] { plan = scheduler::plan(input); });
  results.push_back(describe("plan", planned, input, plan, plan));
  for (const bool whole : {false, true}) {
    const std::vector<int32_t> lists = changed_lists(input, o.change, whole, seed);
    PlanInput changed = input;
    changed.lists = lists;
    const Timing replanned = time([&] { next = scheduler::replan(changed, plan, input.lists); });
    results.push_back(
        describe(whole ? "replan, lists" : "replan, entries", replanned, changed, next, plan));
  }
  write_json(json, {{"machine", describe_machine(measure_machine())},
                    {"trace", o.trace},
                    {"experts", o.experts},
                    {"codewords", o.codewords},
                    {"shortlist", o.shortlist},
                    {"active", o.active},
                    {"dim", o.dim},
                    {"ranks", o.ranks},
                    {"tokens_per_rank", o.tokens},
                    {"copy_budget", o.budget},
                    {"change", o.change},
                    {"float_sums", o.float_sums},
                    {"results", results}});
  return ExitCode::ok;
}

}  // namespace airmoe::bench
