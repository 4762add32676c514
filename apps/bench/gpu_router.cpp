// airmoe-bench router: routing on a CUDA device, part by part, at shapes up to a million experts.

#include <cmath>

#include <cuda_bf16.h>
#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/gpu_timing.hpp"
#include "apps/bench/list_overlap.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "comm/base/cuda/jitter.hpp"
#include "router/cuda/assign.hpp"
#include "router/cuda/codebook.hpp"
#include "router/cuda/order.hpp"
#include "router/cuda/select.hpp"
#include "router/cuda/shortlists.hpp"
#include "router/cuda/sphere.hpp"
#include "scheduler/device_kind.hpp"

namespace airmoe::bench {
namespace {

using cuda::DeviceBuffer;

struct RouterOptions {
  int64_t tokens = 8192, clusters = 512, experts = 65536, active = 512, shortlist = 2048;
  int64_t codewords = 512, dim = 256, repetitions = 30, warm_up = 5, seed = 1, batches = 0,
          groups = 0;
  std::string type = "bf16", centroids = "normal", json, export_to;
};

template <class T>
nlohmann::json bench(const RouterOptions& o) {
  const cuda::Stream stream;
  DeviceTimer timer(stream, o.warm_up, o.repetitions);
  const int64_t n = o.tokens, d = o.dim, e = o.experts;
  const auto seed = static_cast<uint64_t>(o.seed);
  // The last batch is timed; the codebook follows those before it.
  const Buffer<float> all = clustered_states(seed, (o.batches + 1) * n, d, o.clusters, o.groups);
  const auto states = all.span().subspan(o.batches * n * d);
  Buffer<float> centroids;
  if (o.centroids == "clustered") {
    centroids = clustered_centroids(seed, e, d, o.clusters, o.groups);
  } else {
    centroids = Buffer<float>(e * d);
    fill_normal_parallel(centroids.span(), seed, 10, 1.0f / std::sqrt(static_cast<float>(d)));
  }
  std::vector<T> narrow(all.span().size());
  for (std::size_t i = 0; i < narrow.size(); ++i) narrow[i] = T(all.data()[i]);
  DeviceBuffer<T> batches, unit(e * d);
  DeviceBuffer<float> centroid, inverse_norm(e);
  batches.upload(narrow, stream);
  const T* const timed = batches.data() + o.batches * n * d;
  const T* hidden = timed;
  centroid.upload(centroids.span(), stream);
  router::cuda::project_to_sphere(centroid.data(), e, d, unit.data(), inverse_norm.data(), stream);

  router::cuda::DeviceCodebook<T> codebook({o.codewords, d, 0.95f, 1.0f});
  router::cuda::SelectWorkspace select;
  router::cuda::DeviceOrder order;
  router::cuda::DeviceShortlists<T> lists(o.codewords, e, o.shortlist, d);
  const cuda::JitterTable table(stream);
  DeviceBuffer<int32_t> codeword(n);
  DeviceBuffer<uint16_t> position(n * o.active);
  DeviceBuffer<float> gate(n * o.active), log_sum_exp(n);
  const auto do_assign = [&] {
    router::cuda::assign_codewords(hidden, codebook.compute(), n, d, o.codewords, codeword.data(),
                                   stream);
  };
  const auto do_order = [&] { order.build(codeword.data(), n, o.codewords, stream); };
  const auto do_select = [&](const cuda::JitterKey* jitter) {
    router::cuda::select_experts(hidden, d, order.view(), lists.view(), unit.data(), o.active,
                                 jitter, {position.data(), gate.data(), log_sum_exp.data()}, select,
                                 stream);
  };
  const auto update = [&](int64_t step) {
    codebook.update(hidden, order.view(),
                    RandomStream(seed, Purpose::codeword_replacement, static_cast<uint32_t>(step)),
                    stream);
  };
  if (o.batches > 0) hidden = batches.data();
  codebook.initialise(hidden, n, RandomStream(seed, Purpose::codebook_init), stream);
  const int64_t steps = std::max<int64_t>(20, 3 * o.batches);  // settles k-means on the clusters
  for (int64_t i = 0; i < steps; ++i) {
    if (o.batches > 0) hidden = batches.data() + i % o.batches * n * d;
    do_assign();
    do_order();
    update(i + 1);
  }
  hidden = timed;
  const auto noise = [&](Purpose purpose, int64_t step) {
    return table.key(RandomStream(seed, purpose, static_cast<uint32_t>(step)), 0.01f);
  };
  lists.rebuild(codebook.compute(), unit.data(), std::nullopt, stream);
  do_assign();
  do_order();
  stream.synchronize();

  nlohmann::json results = nlohmann::json::object();
  const auto run = [&](const char* name, const std::function<void(int64_t)>& body) {
    const DeviceTiming t = timer.measure(body);
    results[name] = {{"median_ms", t.median}, {"least_ms", t.least}, {"p90_ms", t.p90}};
    fmt::print("  {:<28}{:>10.4f} ms  (least {:.4f})\n", name, t.median, t.least);
  };
  fmt::print(
      "{}; {} tokens in {} clusters (synthetic), {} centroids, E {} K {} M {} G {} d {}, {}\n",
      cuda::device_properties().name, n, o.clusters, o.centroids, e, o.active, o.shortlist,
      o.codewords, d, o.type);
  run("assign", [&](int64_t) { do_assign(); });
  run("order", [&](int64_t) { do_order(); });
  run("select", [&](int64_t) { do_select(nullptr); });
  run("select with jitter", [&](int64_t i) {
    const cuda::JitterKey key = noise(Purpose::jitter_score, i);
    do_select(&key);
  });
  run("routing (all of it)", [&](int64_t) {
    do_assign();
    do_order();
    do_select(nullptr);
  });
  run("list rebuild",
      [&](int64_t) { lists.rebuild(codebook.compute(), unit.data(), std::nullopt, stream); });
  run("list rebuild with jitter", [&](int64_t i) {
    lists.rebuild(codebook.compute(), unit.data(), noise(Purpose::jitter_shortlist, i), stream);
  });
  const router::cuda::ListSearches searches = lists.searches(stream);
  fmt::print("  lists searched a second time {}, of them exhaustively {}\n", searches.second,
             searches.exhaustive);
  run("project to sphere", [&](int64_t) {
    router::cuda::project_to_sphere(centroid.data(), e, d, unit.data(), inverse_norm.data(),
                                    stream);
  });
  run("codebook update", [&](int64_t i) { update(1000 + i); });
  const cuda::CodewordTokens places = order.view();
  std::vector<int32_t> begin(static_cast<std::size_t>(o.codewords + 1));
  AIRMOE_CUDA(cudaMemcpy(begin.data(), places.begin, begin.size() * sizeof(int32_t),
                         cudaMemcpyDeviceToHost));
  int32_t largest = 0;
  int64_t empty = 0;
  for (std::size_t g = 0; g + 1 < begin.size(); ++g) {
    largest = std::max(largest, begin[g + 1] - begin[g]);
    empty += begin[g + 1] == begin[g];
  }
  fmt::print("  largest codeword {} tokens, {} codewords empty\n", largest, empty);
  std::vector<float> book(static_cast<std::size_t>(o.codewords * d));
  AIRMOE_CUDA(cudaMemcpy(book.data(), codebook.codewords(), book.size() * sizeof(float),
                         cudaMemcpyDeviceToHost));
  std::vector<int32_t> ids(static_cast<std::size_t>(o.codewords * o.shortlist));
  AIRMOE_CUDA(cudaMemcpy(ids.data(), lists.view().id, ids.size() * sizeof(int32_t),
                         cudaMemcpyDeviceToHost));
  const nlohmann::json overlap = list_overlap(book, ids, begin, d, e);
  fmt::print("  lists: {}\n", overlap.dump());
  if (!o.export_to.empty()) {
    write_npy<float>(o.export_to + "-hidden.npy", states, {n, d});
    write_npy<float>(o.export_to + "-centroid.npy", centroids.span(), {e, d});
    write_npy<float>(o.export_to + "-codebook.npy", book, {o.codewords, d});
  }
  return {{"benchmark", "router"},
          {"data", "synthetic clustered states, " + o.centroids + " centroids"},
          {"device", device_json()},
          {"tokens", n},
          {"clusters", o.clusters},
          {"cluster_groups", o.groups},
          {"experts", e},
          {"active", o.active},
          {"shortlist", o.shortlist},
          {"codewords", o.codewords},
          {"dim", d},
          {"compute_type", o.type},
          {"largest_codeword_tokens", largest},
          {"lists_searched_again", searches.second},
          {"lists_searched_exhaustively", searches.exhaustive},
          {"empty_codewords", empty},
          {"codebook_batches", o.batches},
          {"lists", overlap},
          {"device_bytes_peak", cuda::device_bytes_peak()},
          {"milliseconds", results}};
}

}  // namespace

ExitCode run_router(int argc, char** argv) {
  RouterOptions o;
  boost::program_options::options_description options("Router", 100, 60);
  add_count(options, "tokens", o.tokens, 1, "tokens");
  add_count(options, "clusters", o.clusters, 1, "cluster centres of the tokens");
  add_count(options, "dim", o.dim, 8, "model width d");
  add_count(options, "experts", o.experts, 1, "experts E");
  add_count(options, "active", o.active, 1, "active experts K per token");
  add_count(options, "shortlist", o.shortlist, 1, "candidates M per codeword");
  add_count(options, "codewords", o.codewords, 1, "codewords G");
  add_count(options, "repetitions", o.repetitions, 1, "timed repetitions");
  add_count(options, "warm-up", o.warm_up, 0, "repetitions before those");
  add_count(options, "seed", o.seed, 0, "seed of the random data");
  add_count(options, "cluster-groups", o.groups, 0,
            "groups of similar clusters; 0: clusters have nothing in common");
  add_count(options, "codebook-batches", o.batches, 0,
            "batches of tokens that the codebook follows; 0: the timed tokens themselves");
  namespace po = boost::program_options;
  options.add_options()(
      "centroids", po::value(&o.centroids)->value_name("KIND")->default_value(o.centroids),
      "normal: untrained, lists share what similar codewords do; clustered: around the clusters of "
      "the tokens, lists share about as much as trained ones")(
      "compute-type", po::value(&o.type)->value_name("NAME")->default_value(o.type), "bf16 or f32")(
      "json", po::value(&o.json)->value_name("FILE"), "write the results there too")(
      "export", po::value(&o.export_to)->value_name("PREFIX"),
      "write the data as PREFIX-hidden.npy, -centroid.npy and -codebook.npy");
  if (!parse(argc, argv, "airmoe-bench router: routing on a CUDA device, part by part", options)) {
    return ExitCode::ok;
  }
  if (o.active > o.shortlist || o.shortlist > o.experts) {
    fail(ExitCode::config,
         "--active {} --shortlist {} --experts {}: need active <= shortlist <= "
         "experts",
         o.active, o.shortlist, o.experts);
  }
  if (o.centroids != "normal" && o.centroids != "clustered") {
    fail(ExitCode::usage, "--centroids {}: normal or clustered", o.centroids);
  }
  cuda::use_device(0);
  const bool f32 = scheduler::parse_compute_type(o.type) == scheduler::ComputeType::f32;
  write_json(o.json, f32 ? bench<float>(o) : bench<__nv_bfloat16>(o));
  return ExitCode::ok;
}

}  // namespace airmoe::bench
