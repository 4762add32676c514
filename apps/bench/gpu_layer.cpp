// airmoe-bench layer-gpu: the MoE layer on a CUDA device, forward and backward, part by part.

#include <cuda_bf16.h>
#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/gpu_timing.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "apps/common/run_main.hpp"
#include "comm/mpi_communicator.hpp"
#include "scheduler/cuda/moe_layer.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::bench {
namespace {

using scheduler::cuda::DeviceMoeLayer;
using scheduler::cuda::DeviceParameters;

struct GpuLayerOptions {
  int64_t tokens = 8192, clusters = 512, repetitions = 30, warm_up = 5, seed = 1;
  std::string type = "bf16", path = "auto", json;
  scheduler::ModelConfig model;
};

template <class T>
nlohmann::json bench(const GpuLayerOptions& o, comm::Communicator& comm) {
  const cuda::Stream stream;
  DeviceTimer timer(stream, o.warm_up, o.repetitions);
  const int64_t n = o.tokens, d = o.model.dim;
  const auto seed = static_cast<uint64_t>(o.seed);
  scheduler::ParameterSet set;
  scheduler::MoeLayer host(comm, o.model, 0, seed, set);
  DeviceParameters<T> parameters(set);
  const cuda::JitterTable jitter(stream);
  DeviceMoeLayer<T> layer(host, seed, parameters, jitter, scheduler::parse_expert_path(o.path),
                          nullptr, stream);
  parameters.upload(stream);
  layer.parameters_changed(stream);

  const auto upload = [&](const Buffer<float>& from) {
    std::vector<T> narrow(static_cast<std::size_t>(from.size()));
    for (int64_t i = 0; i < from.size(); ++i) narrow[static_cast<std::size_t>(i)] = T(from[i]);
    cuda::DeviceBuffer<T> to;
    to.upload(narrow, stream);
    stream.synchronize();
    return to;
  };
  const cuda::DeviceBuffer<T> hidden = upload(clustered_states(seed, n, d, o.clusters));
  Buffer<float> gradient(n * d);
  fill_normal_parallel(gradient.span(), seed, 20, 1.0f / static_cast<float>(n));
  const cuda::DeviceBuffer<T> d_out = upload(gradient);
  cuda::DeviceBuffer<float> out(n * d), d_hidden(n * d);

  scheduler::MicroBatch batch;
  batch.range = {n, 0};
  batch.loss_scale = 1.0f / static_cast<float>(n);
  const auto forward = [&] { layer.forward(hidden.data(), n, out.data(), stream); };
  const auto backward = [&] { layer.backward(d_out.data(), d_hidden.data(), stream); };
  uint32_t index = 0;
  const auto next = [&](bool new_lists) {
    batch.index = index++;
    layer.begin_micro_batch(batch);
    if (new_lists) layer.parameters_changed(stream);
  };
  constexpr int kCodebookSteps = 20;  // settles k-means on the clusters
  for (int i = 0; i < kCodebookSteps; ++i) {
    next(false);
    forward();
  }
  stream.synchronize();

  nlohmann::json results = nlohmann::json::object();
  const auto run = [&](const char* name, const std::function<void(int64_t)>& body) {
    const DeviceTiming t = timer.measure(body);
    results[name] = {{"median_ms", t.median}, {"least_ms", t.least}, {"p90_ms", t.p90}};
    fmt::print("  {:<44}{:>10.4f} ms  (least {:.4f})\n", name, t.median, t.least);
  };
  fmt::print(
      "{}; {} tokens in {} clusters (synthetic), E {} K {} M {} G {} d {} m {}, {}, experts run "
      "{}\n",
      cuda::device_properties().name, n, o.clusters, o.model.experts, o.model.active,
      o.model.shortlist, o.model.codewords, d, o.model.expert_dim, o.type,
      scheduler::name_of(layer.last_path()));
  run("training forward", [&](int64_t) {
    next(false);
    forward();
  });
  run("backward", [&](int64_t) { backward(); });
  run("training forward and backward", [&](int64_t) {
    next(false);
    forward();
    backward();
  });
  run("step: projection, lists, forward, backward", [&](int64_t) {
    next(true);
    forward();
    backward();
    layer.finish_gradients(stream);
  });
  batch.training = false;
  layer.begin_micro_batch(batch);
  forward();
  run("evaluation forward", [&](int64_t) { forward(); });
  return {{"benchmark", "layer-gpu"},
          {"data", "synthetic clustered states, normal centroids"},
          {"device", device_json()},
          {"tokens", n},
          {"clusters", o.clusters},
          {"experts", o.model.experts},
          {"active", o.model.active},
          {"shortlist", o.model.shortlist},
          {"codewords", o.model.codewords},
          {"dim", d},
          {"expert_dim", o.model.expert_dim},
          {"compute_type", o.type},
          {"expert_path", scheduler::name_of(layer.last_path())},
          {"device_bytes_peak", cuda::device_bytes_peak()},
          {"milliseconds", results}};
}

}  // namespace

ExitCode run_layer_gpu(int argc, char** argv) {
  GpuLayerOptions o;
  o.model.dim = 256;
  o.model.experts = 65536;
  o.model.active = 512;
  o.model.shortlist = 2048;
  o.model.codewords = 512;
  boost::program_options::options_description options("Layer on a GPU", 100, 60);
  add_count(options, "tokens", o.tokens, 1, "tokens");
  add_count(options, "clusters", o.clusters, 1, "cluster centres of the tokens");
  add_layer_shape(options, o.model);
  add_count(options, "repetitions", o.repetitions, 1, "timed repetitions");
  add_count(options, "warm-up", o.warm_up, 0, "repetitions before those");
  add_count(options, "seed", o.seed, 0, "seed of the random data");
  namespace po = boost::program_options;
  options.add_options()("expert-path",
                        po::value(&o.path)->value_name("NAME")->default_value(o.path),
                        "auto, dense or grouped")(
      "compute-type", po::value(&o.type)->value_name("NAME")->default_value(o.type), "bf16 or f32")(
      "json", po::value(&o.json)->value_name("FILE"), "write the results there too");
  comm::MpiEnvironment environment(&argc, &argv);
  const int code = apps::run_main("airmoe-bench layer-gpu", environment, [&] {
    if (!parse(argc, argv, "airmoe-bench layer-gpu: the MoE layer on a CUDA device", options)) {
      return ExitCode::ok;
    }
    o.model.heads = 1;
    o.model.kv_heads = 1;
    o.model.validate();
    cuda::use_device(0);
    const auto comm = comm::make_mpi_communicator();
    const bool f32 = scheduler::parse_compute_type(o.type) == scheduler::ComputeType::f32;
    write_json(o.json, f32 ? bench<float>(o, *comm) : bench<__nv_bfloat16>(o, *comm));
    return ExitCode::ok;
  });
  return static_cast<ExitCode>(code);
}

}  // namespace airmoe::bench
