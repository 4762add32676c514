// airmoe-bench attention: causal attention on a CUDA device, forward and backward, for one shape.

#include <cuda_bf16.h>
#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/gpu_timing.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "scheduler/cuda/attention.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::bench {
namespace {

using scheduler::cuda::AttentionShape;
using scheduler::cuda::AttentionWorkspace;
using scheduler::cuda::causal_attention_backward;
using scheduler::cuda::causal_attention_forward;

struct AttentionOptions {
  AttentionShape shape{8, 1024, 4, 1, 64};
  int64_t repetitions = 30, warm_up = 5, seed = 1;
  std::string type = "bf16", json;
};

template <class T>
cuda::DeviceBuffer<T> normal_numbers(int64_t count, uint64_t seed, uint32_t array,
                                     const cuda::Stream& stream) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  fill_normal_parallel(numbers, seed, array, 1.0f);
  const std::vector<T> narrow(numbers.begin(), numbers.end());
  cuda::DeviceBuffer<T> on_device;
  on_device.upload(narrow, stream);
  stream.synchronize();
  return on_device;
}

template <class T>
nlohmann::json measure(const AttentionOptions& o) {
  const AttentionShape& s = o.shape;
  const cuda::Stream stream;
  const int64_t rows = s.sequences * s.context, columns = s.heads * s.head_dim;
  const int64_t kv = s.kv_heads * s.head_dim, ld = columns + 2 * kv;
  const auto seed = static_cast<uint64_t>(o.seed);
  const auto qkv = normal_numbers<T>(rows * ld, seed, 0, stream);
  const auto d_out = normal_numbers<T>(rows * columns, seed, 1, stream);
  cuda::DeviceBuffer<T> out(rows * columns), d_qkv(rows * ld);
  cuda::DeviceBuffer<float> log_sum(rows * s.heads);
  AttentionWorkspace workspace;
  const T* q = qkv.data();
  T* d_q = d_qkv.data();
  const auto run_forward = [&] {
    causal_attention_forward(s, q, q + columns, q + columns + kv, ld, ld, ld, out.data(),
                             log_sum.data(), workspace, stream);
  };
  const auto run_backward = [&] {
    causal_attention_backward(s, q, q + columns, q + columns + kv, ld, ld, ld, out.data(),
                              log_sum.data(), d_out.data(), d_q, d_q + columns, d_q + columns + kv,
                              ld, ld, ld, workspace, stream);
  };
  run_forward();  // buffers grow
  run_backward();
  // So that launches cost what they do in a captured step.
  const CapturedCall forward(stream, run_forward), backward(stream, run_backward);
  DeviceTimer timer(stream, o.warm_up, o.repetitions);
  // Two products of which causality leaves half; the backward's arithmetic is taken as five.
  const auto pairs = static_cast<double>(rows) * static_cast<double>(s.context) / 2;
  const double product = 2.0 * pairs * static_cast<double>(columns);
  nlohmann::json results;
  const auto run = [&](const char* name, double flops, const CapturedCall& work) {
    const DeviceTiming t = timer.measure([&](int64_t) { work.run(); });
    results[name] = {{"median_ms", t.median}, {"least_ms", t.least}, {"flops", flops}};
    fmt::print("  {:<10}{:>10.4f} ms{:>8.0f} TFLOP/s\n", name, t.median, flops / t.median * 1e-9);
  };
  fmt::print("{} x {} tokens, {} heads of {}, {} key/value heads, {}\n", s.sequences, s.context,
             s.heads, s.head_dim, s.kv_heads, o.type);
  run("forward", 2 * product, forward);
  run("backward", 5 * product, backward);
  return {{"benchmark", "attention"}, {"data", "normal numbers"}, {"device", device_json()},
          {"sequences", s.sequences}, {"context", s.context},     {"heads", s.heads},
          {"kv_heads", s.kv_heads},   {"head_dim", s.head_dim},   {"compute_type", o.type},
          {"milliseconds", results}};
}

}  // namespace

ExitCode run_attention(int argc, char** argv) {
  AttentionOptions o;
  boost::program_options::options_description options("Attention on a GPU", 100, 60);
  add_count(options, "sequences", o.shape.sequences, 1, "sequences");
  add_count(options, "context", o.shape.context, 1, "tokens of each");
  add_count(options, "heads", o.shape.heads, 1, "query heads");
  add_count(options, "kv-heads", o.shape.kv_heads, 1,
            "key/value heads, of which heads is a multiple");
  add_count(options, "head-dim", o.shape.head_dim, 1,
            "columns of a head, a multiple of 8 up to 128");
  add_count(options, "repetitions", o.repetitions, 1, "timed repetitions");
  add_count(options, "warm-up", o.warm_up, 0, "repetitions before those");
  add_count(options, "seed", o.seed, 0, "seed of the random data");
  namespace po = boost::program_options;
  options.add_options()(
      "compute-type", po::value(&o.type)->value_name("NAME")->default_value(o.type), "bf16 or f32")(
      "json", po::value(&o.json)->value_name("FILE"), "write the results there too");
  if (!parse(argc, argv, "airmoe-bench attention: causal attention on a CUDA device", options)) {
    return ExitCode::ok;
  }
  if (o.shape.heads % o.shape.kv_heads != 0) {
    fail(ExitCode::usage, "--heads {} is not a multiple of --kv-heads {}; choose one that is",
         o.shape.heads, o.shape.kv_heads);
  }
  cuda::use_device(0);
  const bool f32 = scheduler::parse_compute_type(o.type) == scheduler::ComputeType::f32;
  write_json(o.json, f32 ? measure<float>(o) : measure<__nv_bfloat16>(o));
  return ExitCode::ok;
}

}  // namespace airmoe::bench
