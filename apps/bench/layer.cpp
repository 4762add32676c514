// airmoe-bench layer: forward (and backward) of the distributed MoE layer on clustered tokens,
// against full scoring of the same tokens by the same experts.

#include <algorithm>
#include <chrono>
#include <cmath>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/full_scoring.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "apps/common/run_main.hpp"
#include "comm/base/blas.hpp"
#include "comm/mpi_communicator.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/quality_probe.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::bench {
namespace {

using scheduler::ModelConfig;
using scheduler::MoeLayer;
using scheduler::Phase;

struct LayerOptions {
  int64_t tokens = 16384;
  int64_t clusters = 512;
  Repeats repeats{.warm_up = 1, .repetitions = 7, .clock = Clock::wall};
  uint64_t seed = 1;
  std::string json, path = "auto";
  ModelConfig model;
};

// Tokens as a trained RMSNorm leaves them: |h| = sqrt(d), directions gathered around cluster
// centres (cosine to the centre about 0.8). Isotropic tokens would say nothing about a router.
Buffer<float> clustered_tokens(const LayerOptions& o, int64_t first, int64_t count) {
  const int64_t d = o.model.dim;
  const RandomStream centres(o.seed, Purpose::test_data, 1);
  const RandomStream noise(o.seed, Purpose::test_data, 2);
  const RandomStream pick(o.seed, Purpose::test_data, 3);
  Buffer<float> tokens(count * d);
  std::vector<float> centre(d), gap(d);
  for (int64_t t = 0; t < count; ++t) {
    const auto token = static_cast<uint64_t>(first + t);
    const auto cluster =
        static_cast<uint64_t>(pick.uniform(token) * static_cast<double>(o.clusters));
    centres.fill_normal(centre.data(), d, cluster * static_cast<uint64_t>(d), 1.0f);
    noise.fill_normal(gap.data(), d, token * static_cast<uint64_t>(d), 0.75f);
    double square = 0;
    for (int64_t k = 0; k < d; ++k) {
      centre[k] += gap[k];
      square += static_cast<double>(centre[k]) * centre[k];
    }
    const auto scale = static_cast<float>(std::sqrt(static_cast<double>(d) / square));
    for (int64_t k = 0; k < d; ++k) tokens[t * d + k] = centre[k] * scale;
  }
  return tokens;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Seconds until the slowest rank is done.
template <class Body>
double slowest(comm::Communicator& comm, Body&& body) {
  comm.barrier();
  const auto start = std::chrono::steady_clock::now();
  body();
  const double mine =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return comm.all_reduce_value(mine, comm::Reduction::max);
}

// All experts of the layer on every rank, for the baseline.
struct AllExperts {
  Buffer<float> unit, up, down;
};

AllExperts gather_experts(comm::Communicator& comm, MoeLayer& layer) {
  const BlockPartition& part = layer.shortlists().experts();
  const auto gather = [&](const float* local, int64_t row) {
    std::vector<int64_t> counts(comm.size());
    for (int r = 0; r < comm.size(); ++r) counts[r] = part.size(r) * row;
    Buffer<float> all(part.total * row);
    comm.all_gather_v(std::span<const float>(local, counts[comm.rank()]), all.span(), counts);
    return all;
  };
  const int64_t d = layer.config().dim;
  const int64_t m = layer.config().expert_dim;
  return {gather(layer.unit_centroids().data, d), gather(layer.up().value.data(), m * d),
          gather(layer.down().value.data(), m * d)};
}

ExitCode bench_layer(const LayerOptions& o, comm::Communicator& comm) {
  const BlockPartition part{o.tokens, comm.size()};
  const int64_t first = part.begin(comm.rank());
  const int64_t n = part.size(comm.rank());
  const int64_t d = o.model.dim;
  const Buffer<float> tokens = clustered_tokens(o, first, n);
  const ConstMatrix hidden(tokens.data(), n, d);
  Buffer<float> y(n * d), d_hidden(n * d);
  const Matrix out(y.data(), n, d);

  scheduler::ParameterSet parameters;
  MoeLayer layer(comm, o.model, 0, o.seed, parameters, scheduler::parse_expert_path(o.path));
  scheduler::MicroBatch batch;
  batch.range = {o.tokens, first};
  batch.loss_scale = 1.0f / static_cast<float>(o.tokens);
  constexpr int kCodebookSteps = 20;  // settles k-means on the clusters
  for (int i = 0; i < kCodebookSteps; ++i) {
    batch.step = static_cast<uint32_t>(i + 1);
    batch.index = static_cast<uint32_t>(i > 0);
    layer.begin_micro_batch(batch);
    layer.forward(hidden, out);
  }
  AllExperts all = gather_experts(comm, layer);
  const int64_t rows = o.model.experts * o.model.expert_dim;
  experts::ExpertTable table;
  table.up = {all.up.data(), rows, d};
  table.down = {all.down.data(), rows, d};
  table.expert_dim = o.model.expert_dim;
  table.activation = o.model.expert_activation;
  FullScoring full({all.unit.data(), o.model.experts, d}, table, o.model.active);
  Buffer<float> y_full(n * d);

  batch.training = false;
  std::vector<double> layer_seconds, full_seconds, backward_seconds;
  double kernels = 0, all_layer = 0;
  // The baseline runs its experts in the way that is faster for it here.
  auto way = FullScoring::Way::by_expert;
  {
    const int64_t some = std::min<int64_t>(n, 1024);
    const ConstMatrix part_of(tokens.data(), some, d);
    const auto seconds = [&](FullScoring::Way w) {
      return slowest(comm, [&] { full.forward(part_of, {y_full.data(), some, d}, w); });
    };
    seconds(way);
    if (seconds(FullScoring::Way::by_token) < seconds(FullScoring::Way::by_expert)) {
      way = FullScoring::Way::by_token;
    }
  }
  const double rebuild = slowest(comm, [&] { layer.rebuild_evaluation_lists(); });
  for (int64_t i = -o.repeats.warm_up; i < o.repeats.repetitions; ++i) {
    batch.training = false;
    layer.begin_micro_batch(batch);
    if (i == 0) layer.clock().reset();
    const double before = layer.kernel_seconds();
    const double forward = slowest(comm, [&] { layer.forward(hidden, out); });
    const double baseline = slowest(comm, [&] {
      full.forward(hidden, {y_full.data(), n, d}, way);
    });
    if (i < 0) continue;
    kernels += layer.kernel_seconds() - before;
    all_layer += forward;
    layer_seconds.push_back(forward);
    full_seconds.push_back(baseline);
  }
  std::vector<double> phases;
  for (std::size_t p = 0; p < scheduler::kPhaseNames.size(); ++p) {
    phases.push_back(
        comm.all_reduce_value(layer.clock().seconds(static_cast<Phase>(p)), comm::Reduction::max) /
        static_cast<double>(o.repeats.repetitions));
  }
  kernels = comm.all_reduce_value(kernels, comm::Reduction::sum) / comm.size();
  scheduler::RoutingRecord record;
  layer.capture(record);
  const scheduler::RoutingQuality quality = scheduler::probe_routing(comm, layer, record, 256);

  // One training forward and backward, for the ratio of the two.
  batch.training = true;
  for (int64_t i = 0; i < std::max<int64_t>(1, o.repeats.repetitions / 2); ++i) {
    layer.begin_micro_batch(batch);
    layer.forward(hidden, out);
    backward_seconds.push_back(slowest(comm, [&] {
      layer.backward(out, {d_hidden.data(), n, d});
    }));
  }

  if (comm.rank() != 0) return ExitCode::ok;
  const double forward = median(layer_seconds);
  const double baseline = median(full_seconds);
  const double share = kernels / all_layer;
  fmt::print("{} tokens in {} clusters on {} ranks; E {} K {} M {} G {} d {} m {}\n", o.tokens,
             o.clusters, comm.size(), o.model.experts, o.model.active, o.model.shortlist,
             o.model.codewords, d, o.model.expert_dim);
  fmt::print("experts run {}\n", scheduler::name_of(layer.last_path()));
  fmt::print("overlap with the exact top K {:.3f}, top-K mass ratio {:.3f}\n", quality.overlap,
             quality.topk_mass_ratio);
  fmt::print("layer forward   {:9.1f} ms  ({:.1f} us/token), {:.0f} % of it in matrix products\n",
             forward * 1e3, forward * 1e6 / static_cast<double>(o.tokens), share * 100);
  const char* way_name = way == FullScoring::Way::by_token ? "token by token" : "expert by expert";
  fmt::print("full scoring    {:9.1f} ms  {:.2f} x the layer's time (experts {})\n", baseline * 1e3,
             baseline / forward, way_name);
  fmt::print("layer backward  {:9.1f} ms\nlist rebuild    {:9.1f} ms (once per optimizer step)\n",
             median(backward_seconds) * 1e3, rebuild * 1e3);
  nlohmann::json j = {{"benchmark", "layer"},
                      {"data", "synthetic clustered tokens"},
                      {"tokens", o.tokens},
                      {"clusters", o.clusters},
                      {"ranks", comm.size()},
                      {"experts", o.model.experts},
                      {"active", o.model.active},
                      {"shortlist", o.model.shortlist},
                      {"codewords", o.model.codewords},
                      {"dim", d},
                      {"expert_dim", o.model.expert_dim},
                      {"expert_path", scheduler::name_of(layer.last_path())},
                      {"blas", blas::description()},
                      {"repetitions", o.repeats.repetitions},
                      {"overlap", quality.overlap},
                      {"topk_mass_ratio", quality.topk_mass_ratio},
                      {"forward_seconds", layer_seconds},
                      {"forward_median_seconds", forward},
                      {"full_scoring_seconds", full_seconds},
                      {"full_scoring_median_seconds", baseline},
                      {"full_scoring_experts", way_name},
                      {"speedup", baseline / forward},
                      {"matrix_product_share", share},
                      {"backward_median_seconds", median(backward_seconds)},
                      {"list_rebuild_seconds", rebuild}};
  for (std::size_t p = 0; p < phases.size(); ++p) {
    if (phases[p] == 0) continue;
    j["phase_seconds"][scheduler::kPhaseNames[p]] = phases[p];
    fmt::print("  {:<16}{:9.1f} ms\n", scheduler::kPhaseNames[p], phases[p] * 1e3);
  }
  write_json(o.json, j);
  return ExitCode::ok;
}

}  // namespace

ExitCode run_layer(int argc, char** argv) {
  LayerOptions o;
  o.model.dim = 256;
  o.model.experts = 65536;
  o.model.active = 512;
  o.model.shortlist = 2048;
  o.model.codewords = 512;
  boost::program_options::options_description options("Layer", 100, 60);
  add_count(options, "tokens", o.tokens, 1, "tokens over all ranks");
  add_count(options, "clusters", o.clusters, 1, "cluster centres of the tokens");
  add_layer_shape(options, o.model);
  options.add_options()(
      "expert-path",
      boost::program_options::value(&o.path)->value_name("NAME")->default_value(o.path),
      "auto, dense or grouped");
  add_run_options(options, o.repeats, o.seed, o.json);
  comm::MpiEnvironment environment(&argc, &argv);
  const int code = apps::run_main("airmoe-bench layer", environment, [&] {
    if (!parse(argc, argv, "airmoe-bench layer: the MoE layer against full scoring", options)) {
      return ExitCode::ok;
    }
    o.model.heads = 1;
    o.model.kv_heads = 1;
    o.model.validate();
    const auto comm = comm::make_mpi_communicator();
    return bench_layer(o, *comm);
  });
  return static_cast<ExitCode>(code);
}

}  // namespace airmoe::bench
