// airmoe-bench expert-paths: forward and backward of both expert paths over many shapes, beside
// what experts/cost_model.hpp predicts. fit_cost_model.py turns the JSON into its constants.

#include <algorithm>
#include <initializer_list>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/expert_runs.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "experts/cost_model.hpp"

namespace airmoe::bench {
namespace {

constexpr int64_t kTotalTokens = 256;
// Hidden units of pairs; about two seconds for both paths.
constexpr int64_t kMostUnits = 4096 * 512;

/// Few to many tokens per codeword, dense to sparse selections, narrow to wide experts.
std::vector<WorkloadShape> shapes_to_measure(uint64_t seed) {
  std::vector<WorkloadShape> shapes;
  for (int64_t dim : {64, 256}) {
    for (int64_t expert_dim : {1, 4, 16}) {
      for (int64_t shortlist : {256, 1024}) {
        for (int64_t sparsity : {4, 16, 64}) {
          for (int64_t tokens : {4, 16, 64}) {
            shapes.push_back({.experts = 4096,
                              .dim = dim,
                              .expert_dim = expert_dim,
                              .shortlist = shortlist,
                              .active = shortlist / sparsity,
                              .tokens = tokens,
                              .codewords = kTotalTokens / tokens,
                              .seed = seed});
          }
        }
      }
    }
  }
  // Tables of 64 MiB each, and tokens within and far beyond the second-level cache.
  struct Tokens {
    int64_t per_codeword, codewords;
  };
  for (int64_t expert_dim : {1, 4}) {
    for (int64_t active : {32, 128, 512}) {
      for (const Tokens& tokens :
           std::initializer_list<Tokens>{{1, 64}, {8, 8}, {8, 64}, {64, 8}, {32, 64}, {8, 512}}) {
        if (expert_dim * active * tokens.per_codeword * tokens.codewords > kMostUnits) continue;
        shapes.push_back({.experts = 65536 / expert_dim,
                          .dim = 256,
                          .expert_dim = expert_dim,
                          .shortlist = 2048,
                          .active = active,
                          .tokens = tokens.per_codeword,
                          .codewords = tokens.codewords,
                          .seed = seed});
      }
    }
  }
  return shapes;
}

experts::PathShape path_shape(const WorkloadShape& shape) {
  return {
      .tokens = static_cast<double>(shape.all_tokens()),
      .tokens_per_codeword = static_cast<double>(shape.tokens),
      .candidates = static_cast<double>(shape.shortlist),
      .active = static_cast<double>(shape.active),
      .experts = static_cast<double>(std::min(shape.experts, shape.codewords * shape.shortlist)),
      .expert_dim = shape.expert_dim,
      .dim = shape.dim};
}

}  // namespace

ExitCode run_expert_paths(int argc, char** argv) {
  Repeats repeats{.warm_up = 1, .repetitions = 3};
  uint64_t seed = 1;
  std::string json;
  boost::program_options::options_description options("Expert paths", 100, 60);
  add_run_options(options, repeats, seed, json);
  if (!parse(argc, argv, "Both expert paths over many shapes, on random data, one thread.",
             options)) {
    return ExitCode::ok;
  }

  fmt::print("{:>5}{:>5}{:>7}{:>6}{:>8} |{:>11}{:>11} |{:>11}{:>11} |{:>10}\n", "d", "m", "M", "K",
             "n/code", "dense us", "predicted", "grouped us", "predicted", "chosen/best");
  nlohmann::json results = nlohmann::json::array();
  double worst = 1;
  for (const WorkloadShape& shape : shapes_to_measure(seed)) {
    Workload work(shape);
    ExpertRuns runs(work);
    const std::vector<Timing> timings =
        measure({{"dense", [&](int64_t) { runs.forward_dense(), runs.backward_dense(); }},
                 {"grouped", [&](int64_t) { runs.forward_grouped(), runs.backward_grouped(); }}},
                repeats);
    const double dense = timings[0].least, grouped = timings[1].least;
    const experts::PathShape path = path_shape(shape);
    const bool chose_dense =
        experts::choose_path(experts::Path::automatic, path) == experts::Path::dense;
    const double loss = (chose_dense ? dense : grouped) / std::min(dense, grouped);
    worst = std::max(worst, loss);
    fmt::print("{:>5}{:>5}{:>7}{:>6}{:>8} |{:>11.0f}{:>11.0f} |{:>11.0f}{:>11.0f} |{:>10.2f}\n",
               shape.dim, shape.expert_dim, shape.shortlist, shape.active, shape.tokens,
               1e6 * dense, 1e6 * experts::dense_seconds(path), 1e6 * grouped,
               1e6 * experts::grouped_seconds(path), loss);
    results.push_back({{"dim", shape.dim},
                       {"expert_dim", shape.expert_dim},
                       {"shortlist", shape.shortlist},
                       {"active", shape.active},
                       {"tokens_per_codeword", shape.tokens},
                       {"tokens", shape.all_tokens()},
                       {"dense_seconds", dense},
                       {"dense_units", experts::dense_units(path)},
                       {"dense_predicted_seconds", experts::dense_seconds(path)},
                       {"grouped_seconds", grouped},
                       {"grouped_units", experts::grouped_units(path)},
                       {"grouped_predicted_seconds", experts::grouped_seconds(path)},
                       {"chosen_over_best", loss}});
  }
  fmt::print("\nThe chosen path is at worst {:.2f} times as slow as the better one.\n", worst);
  write_json(json, {{"machine", describe_machine(measure_machine())},
                    {"worst_chosen_over_best", worst},
                    {"results", results}});
  return ExitCode::ok;
}

}  // namespace airmoe::bench
