// airmoe-bench exchange: one optimizer step of the distributed MoE layer (forward, backward, the
// gradients of copies) under several exchange strategies, on the same clustered tokens.

#include <algorithm>
#include <cmath>
#include <ctime>
#include <memory>
#include <sstream>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/transport.hpp"
#include "comm/mpi_environment.hpp"
#include "comm/stats_communicator.hpp"
#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::bench {
namespace {

using scheduler::Exchange;
using scheduler::ExchangeConfig;
using scheduler::MoeLayer;

struct ExchangeOptions {
  int64_t tokens_per_rank = 2048;
  int64_t families = 32;  // of clusters that share a direction, so that their lists overlap
  double spread = 2.0;    // of centroids around their cluster's centre
  double hot_share = 0, hot_codewords = 0.05;
  std::string strategies = "block,cover:1,cover:2,selected,gather,auto:2";
  int64_t steps = 8, chunks = 4;
  std::string json, sums = "f64";
  uint64_t seed = 1;
  scheduler::ModelConfig model;
  apps::Transport transport;
};

// "cover:2.5" -> strategy and copy budget.
std::vector<std::pair<std::string, ExchangeConfig>> parse_strategies(const ExchangeOptions& o) {
  std::vector<std::pair<std::string, ExchangeConfig>> all;
  std::stringstream list(o.strategies);
  for (std::string item; std::getline(list, item, ',');) {
    const std::size_t colon = item.find(':');
    ExchangeConfig config;
    const std::string name = item.substr(0, colon);
    config.move_homes = name != "block";
    config.exchange = name == "block" ? Exchange::cover : scheduler::parse_exchange(name);
    config.overlap_chunks = o.chunks;
    if (colon != std::string::npos) {
      std::size_t used = 0;
      try {
        config.copy_budget = std::stod(item.substr(colon + 1), &used);
      } catch (const std::exception&) {
      }
      if (used != item.size() - colon - 1 || !(config.copy_budget >= 1)) {
        fail(ExitCode::usage, "--strategies {}: give a copy budget of at least 1, as cover:2",
             item);
      }
    }
    all.emplace_back(item, config);
  }
  return all;
}

// Cluster centres of length 1; those of a family are close to each other.
std::vector<float> centres(const ExchangeOptions& o) {
  const int64_t d = o.model.dim;
  const RandomStream of_family(o.seed, Purpose::test_data, 1);
  const RandomStream of_cluster(o.seed, Purpose::test_data, 2);
  std::vector<float> all(o.model.codewords * d), own(d);
  for (int64_t g = 0; g < o.model.codewords; ++g) {
    float* c = all.data() + g * d;
    of_family.fill_normal(c, d, static_cast<uint64_t>(g * o.families / o.model.codewords * d),
                          1.0f);
    of_cluster.fill_normal(own.data(), d, static_cast<uint64_t>(g * d), 0.7f);
    double square = 0;
    for (int64_t k = 0; k < d; ++k) {
      c[k] += own[k];
      square += static_cast<double>(c[k]) * c[k];
    }
    for (int64_t k = 0; k < d; ++k) c[k] = static_cast<float>(c[k] / std::sqrt(square));
  }
  return all;
}

// Row i: the centre of its cluster plus noise, of length `length`.
void near_centre(const std::vector<float>& centre, int64_t cluster, const RandomStream& noise,
                 uint64_t row, double spread, float length, std::span<float> out) {
  const int64_t d = std::ssize(out);
  noise.fill_normal(out.data(), d, row * static_cast<uint64_t>(d),
                    static_cast<float>(spread / std::sqrt(static_cast<double>(d))));
  double square = 0;
  for (int64_t k = 0; k < d; ++k) {
    out[k] += centre[cluster * d + k];
    square += static_cast<double>(out[k]) * out[k];
  }
  for (float& x : out) x = static_cast<float>(x * length / std::sqrt(square));
}

// Adds each token to the count of its cluster.
Buffer<float> make_tokens(const ExchangeOptions& o, const std::vector<float>& centre, int64_t first,
                          std::span<float> counts) {
  const int64_t d = o.model.dim;
  const RandomStream pick(o.seed, Purpose::test_data, 3), noise(o.seed, Purpose::test_data, 4);
  const auto hot =
      std::max<int64_t>(1, std::llround(o.hot_codewords * static_cast<double>(o.model.codewords)));
  Buffer<float> tokens(o.tokens_per_rank * d);
  for (int64_t t = 0; t < o.tokens_per_rank; ++t) {
    const auto token = static_cast<uint64_t>(first + t);
    const bool is_hot = pick.uniform(2 * token) < o.hot_share;
    const int64_t choices = is_hot ? hot : o.model.codewords;
    auto cluster = std::min(choices - 1, static_cast<int64_t>(pick.uniform(2 * token + 1) *
                                                              static_cast<double>(choices)));
    if (is_hot) cluster = cluster * (o.model.codewords / hot);  // spread over the families
    counts[cluster] += 1;
    near_centre(centre, cluster, noise, token, 0.75, std::sqrt(static_cast<float>(d)),
                tokens.span().subspan(t * d, d));
  }
  return tokens;
}

// A layer whose codebook is the cluster centres and stays so, with centroids around the centres.
struct Run {
  std::string name;
  scheduler::ParameterSet parameters;
  std::unique_ptr<MoeLayer> layer;
  std::vector<double> seconds, busiest, bytes;
  double under_way = 0, waited = 0;
  std::map<std::string, double> phase_bytes;
};

void prepare(const ExchangeOptions& o, const std::vector<float>& centre,
             const std::vector<float>& counts, Run& run) {
  MoeLayer& layer = *run.layer;
  const RandomStream noise(o.seed, Purpose::test_data, 5);
  const int64_t d = o.model.dim;
  scheduler::Parameter& centroid = layer.centroid();
  for (int64_t i = 0; i < centroid.row_count; ++i) {
    const int64_t e = centroid.row_begin + i;
    near_centre(centre, e % o.model.codewords, noise, static_cast<uint64_t>(e), o.spread, 1.0f,
                {centroid.value.data() + i * d, static_cast<std::size_t>(d)});
  }
  layer.parameters_changed();
  router::Codebook& codebook = layer.codebook();
  std::copy(centre.begin(), centre.end(), codebook.codewords().data);
  std::copy(centre.begin(), centre.end(), codebook.sums().data);
  std::copy(counts.begin(), counts.end(), codebook.counts().begin());
  layer.set_codebook_initialised();
}

double thread_seconds() {
  timespec t = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

ExitCode bench_exchange(const ExchangeOptions& o, comm::Communicator& inner) {
  comm::StatsCommunicator comm(inner);
  const int64_t n = o.tokens_per_rank;
  const int64_t d = o.model.dim;
  const std::vector<float> centre = centres(o);
  std::vector<float> counts(o.model.codewords, 0.0f);
  const Buffer<float> tokens = make_tokens(o, centre, n * comm.rank(), counts);
  comm.all_reduce(std::span<float>(counts), comm::Reduction::sum);
  const ConstMatrix hidden(tokens.data(), n, d);
  Buffer<float> y(n * d), d_hidden(n * d), d_y(n * d);
  RandomStream(o.seed, Purpose::test_data, 6)
      .fill_normal(d_y.data(), n * d, static_cast<uint64_t>(n * d * comm.rank()),
                   1.0f / static_cast<float>(n * comm.size()));
  std::vector<Run> runs;
  const auto sums = o.sums == "f32" ? scheduler::SumPrecision::f32 : scheduler::SumPrecision::f64;
  const auto strategies = parse_strategies(o);
  runs.resize(strategies.size());
  for (std::size_t i = 0; i < strategies.size(); ++i) {
    runs[i].name = strategies[i].first;
    runs[i].layer =
        std::make_unique<MoeLayer>(comm, o.model, 0, o.seed, runs[i].parameters,
                                   experts::Path::automatic, sums, strategies[i].second);
    prepare(o, centre, counts, runs[i]);
  }
  scheduler::MicroBatch batch;
  batch.range = {n * comm.size(), n * comm.rank()};
  batch.loss_scale = 1.0f / static_cast<float>(n * comm.size());
  constexpr int64_t kWarmUp = 2;
  for (int64_t step = 1; step <= o.steps + kWarmUp; ++step) {
    for (Run& run : runs) {
      batch.step = static_cast<uint32_t>(step);
      run.layer->begin_micro_batch(batch);
      comm.reset();
      run.layer->exchange_clock().reset();
      comm.barrier();
      const double start = wall_seconds();
      const double cpu = thread_seconds();
      run.layer->forward(hidden, {y.data(), n, d});
      run.layer->backward({d_y.data(), n, d}, {d_hidden.data(), n, d});
      run.layer->finish_gradients();
      run.layer->parameters_changed();
      double mine[2] = {wall_seconds() - start, thread_seconds() - cpu};
      double bytes = 0;
      for (const auto& [phase, s] : comm.stats()) bytes += static_cast<double>(s.bytes_sent);
      if (step > kWarmUp) {
        for (const auto& [phase, s] : comm.stats()) {
          run.phase_bytes[phase] +=
              static_cast<double>(s.bytes_sent) / static_cast<double>(o.steps);
        }
        run.under_way += run.layer->exchange_clock().under_way();
        run.waited += run.layer->exchange_clock().waited();
      }
      comm.all_reduce(std::span<double>(mine), comm::Reduction::max);
      bytes = comm.all_reduce_value(bytes, comm::Reduction::sum);
      if (step <= kWarmUp) continue;
      run.seconds.push_back(mine[0]);
      run.busiest.push_back(mine[1]);
      run.bytes.push_back(bytes);
    }
  }
  nlohmann::json j = {{"benchmark", "exchange"},
                      {"data", "synthetic clustered tokens and centroids"},
                      {"ranks", comm.size()},
                      {"tokens_per_rank", n},
                      {"experts", o.model.experts},
                      {"active", o.model.active},
                      {"shortlist", o.model.shortlist},
                      {"codewords", o.model.codewords},
                      {"dim", d},
                      {"families", o.families},
                      {"spread", o.spread},
                      {"hot_share", o.hot_share},
                      {"hot_codewords", o.hot_codewords},
                      {"overlap_chunks", o.chunks},
                      {"sum_precision", o.sums},
                      {"transport", o.transport.name},
                      {"steps", o.steps}};
  if (comm.rank() == 0) {
    fmt::print("{} ranks x {} tokens; E {} K {} M {} G {} d {}; medians of {} steps\n", comm.size(),
               n, o.model.experts, o.model.active, o.model.shortlist, o.model.codewords, d,
               o.steps);
    fmt::print("{:<14}{:>9}{:>13}{:>13}{:>12}{:>8}{:>8}{:>8}{:>8}\n", "strategy", "runs as",
               "step [ms]", "busiest [ms]", "MB/step", "cover", "rows", "work", "hidden");
  }
  const double first = runs.empty() ? 0 : median(runs[0].seconds);
  for (Run& run : runs) {
    double clock[2] = {run.under_way, run.waited};
    comm.all_reduce(std::span<double>(clock), comm::Reduction::sum);
    std::vector<std::string> names;
    std::vector<double> phases;
    for (const char* phase :
         {"dispatch", "select", "combine", "usage", "backward_dispatch", "backward_combine",
          "copies", "copy_gradients", "lists", "codebook", "placement", "move_experts"}) {
      names.emplace_back(phase);
      phases.push_back(run.phase_bytes[phase]);
    }
    comm.all_reduce(std::span<double>(phases), comm::Reduction::sum);
    scheduler::MoeCounters& c = run.layer->counters();
    double cover[2] = {static_cast<double>(c.candidate_ranks), static_cast<double>(c.tokens)};
    comm.all_reduce(std::span<double>(cover), comm::Reduction::sum);
    const scheduler::PlacementRecord& r = run.layer->placement().record();
    if (comm.rank() != 0) continue;
    const double hidden_share = clock[0] > 0 ? 1 - clock[1] / clock[0] : 0;
    fmt::print("{:<14}{:>9}{:13.1f}{:13.1f}{:12.2f}{:8.2f}{:8.2f}{:8.2f}{:7.0f}%\n", run.name,
               scheduler::name_of(run.layer->exchange()), 1e3 * median(run.seconds),
               1e3 * median(run.busiest), median(run.bytes) / 1e6, cover[0] / cover[1], r.rows,
               r.work_imbalance, 100 * hidden_share);
    nlohmann::json entry = {{"strategy", run.name},
                            {"runs_as", scheduler::name_of(run.layer->exchange())},
                            {"step_seconds", run.seconds},
                            {"step_median_seconds", median(run.seconds)},
                            {"ratio_to_first", first / median(run.seconds)},
                            {"busiest_rank_processor_seconds", median(run.busiest)},
                            {"bytes_per_step", median(run.bytes)},
                            {"cover", cover[0] / cover[1]},
                            {"rows", r.rows},
                            {"work_imbalance", r.work_imbalance},
                            {"predicted_bytes", r.predicted_bytes},
                            {"predicted_seconds", r.predicted_seconds},
                            {"plan_seconds", r.plan_seconds},
                            {"hidden_share", hidden_share}};
    for (std::size_t i = 0; i < names.size(); ++i) entry["phase_bytes"][names[i]] = phases[i];
    j["results"].push_back(entry);
  }
  if (comm.rank() == 0) write_json(o.json, j);
  return ExitCode::ok;
}

}  // namespace

ExitCode run_exchange(int argc, char** argv) {
  ExchangeOptions o;
  o.model.dim = 128;
  o.model.experts = 16384;
  o.model.active = 128;
  o.model.shortlist = 512;
  o.model.codewords = 256;
  o.model.codebook_decay = 1.0f;
  o.model.dead_threshold = 0.0f;
  namespace po = boost::program_options;
  po::options_description options("Exchange", 100, 60);
  add_count(options, "tokens-per-rank", o.tokens_per_rank, 1,
            "tokens of each rank and step, clustered around the codewords");
  add_layer_shape(options, o.model);
  add_count(options, "families", o.families, 1, "groups of clusters whose lists overlap");
  add_count(options, "steps", o.steps, 1, "measured steps per strategy, in turn");
  add_count(options, "overlap-chunks", o.chunks, 1, "pieces of a micro-batch that overlap");
  const auto real = [&](const char* name, double& value, const char* help) {
    options.add_options()(name, po::value(&value)->value_name("X")->default_value(value), help);
  };
  real("spread", o.spread, "noise of centroids around their cluster's centre, of length 1");
  real("hot-share", o.hot_share, "share of the tokens that fall on the hot codewords");
  real("hot-codewords", o.hot_codewords, "share of the codewords that are hot");
  options.add_options()(
      "strategies", po::value(&o.strategies)->value_name("LIST")->default_value(o.strategies),
      "NAME[:COPY-BUDGET] of block (cover, no copies, experts stay where they were), cover, "
      "selected, gather and auto; the first is the baseline");
  options.add_options()(
      "sum-precision", po::value(&o.sums)->value_name("NAME")->default_value(o.sums), "f64 or f32");
  options.add_options()("seed", po::value(&o.seed)->value_name("N")->default_value(o.seed),
                        "seed of everything random");
  options.add_options()("json", po::value(&o.json)->value_name("FILE"), "write results here");
  apps::add_transport_options(options, o.transport);
  comm::MpiEnvironment environment(&argc, &argv);
  const int code = apps::run_main("airmoe-bench exchange", environment, [&] {
    if (!parse(argc, argv, "airmoe-bench exchange: a step of the MoE layer under each strategy",
               options, environment.rank() == 0)) {
      return ExitCode::ok;
    }
    if (o.sums != "f64" && o.sums != "f32") {
      fail(ExitCode::usage, "--sum-precision {}: give f64 or f32", o.sums);
    }
    if (!(o.hot_share >= 0 && o.hot_share <= 1)) {
      fail(ExitCode::usage, "--hot-share {}: give a share from 0 to 1", o.hot_share);
    }
    if (!(o.hot_codewords > 0 && o.hot_codewords <= 1)) {
      fail(ExitCode::usage, "--hot-codewords {}: give a share above 0, at most 1", o.hot_codewords);
    }
    o.model.heads = 1;
    o.model.kv_heads = 1;
    o.model.validate();
    const auto comm = apps::make_communicator(o.transport);
    return bench_exchange(o, *comm);
  });
  return static_cast<ExitCode>(code);
}

}  // namespace airmoe::bench
