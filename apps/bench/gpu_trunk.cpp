// airmoe-bench trunk-gpu: the language model without MoE layers on a CUDA device, in whole and part
// by part.

#include <cuda_bf16.h>
#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/gpu_timing.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "comm/base/random.hpp"
#include "scheduler/cuda/adamw.hpp"
#include "scheduler/cuda/attention.hpp"
#include "scheduler/cuda/cross_entropy.hpp"
#include "scheduler/cuda/embedding.hpp"
#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/cuda/norms.hpp"
#include "scheduler/cuda/rope.hpp"
#include "scheduler/cuda/swiglu.hpp"
#include "scheduler/cuda/trunk.hpp"
#include "scheduler/train/train_config.hpp"
#include "scheduler/trunk/trunk.hpp"

namespace airmoe::bench {
namespace {

namespace ops = scheduler::cuda;
using scheduler::cuda::AttentionShape;
using scheduler::cuda::AttentionWorkspace;
using scheduler::cuda::ColumnSums;
using scheduler::cuda::CrossEntropyInput;
using scheduler::cuda::CrossEntropyWorkspace;
using scheduler::cuda::DeviceMoeSlot;
using scheduler::cuda::DeviceParameters;
using scheduler::cuda::DeviceRope;
using scheduler::cuda::DeviceTrunk;
using scheduler::cuda::EmbeddingWorkspace;
using scheduler::cuda::Gemm;
using scheduler::cuda::GradientNormWorkspace;
using scheduler::cuda::GradientSquares;

struct GpuTrunkOptions {
  int64_t sequences = 32, vocab = 256, layers = 0, repetitions = 30, warm_up = 5, seed = 1;
  std::string preset = "small", type = "bf16", json;
};

class Results {
 public:
  Results(const cuda::Stream& stream, const GpuTrunkOptions& o)
      : timer_(stream, o.warm_up, o.repetitions) {}
  /// `count`: how often a step does this.
  double run(const std::string& name, int64_t count, const std::function<void()>& body) {
    const DeviceTiming t = timer_.measure([&](int64_t) { body(); });
    json_[name] = {{"median_ms", t.median}, {"least_ms", t.least}, {"times_per_step", count}};
    fmt::print("  {:<44}{:>10.4f} ms{:>6} x\n", name, t.median, count);
    return t.median;
  }
  const nlohmann::json& json() const { return json_; }

 private:
  DeviceTimer timer_;
  nlohmann::json json_ = nlohmann::json::object();
};

/// Ids with frequencies like those of text: few are most of it.
cuda::DeviceBuffer<int32_t> tokens_like_text(int64_t count, int64_t vocab, uint32_t which,
                                             const cuda::Stream& stream) {
  const RandomStream random(1, Purpose::test_data, which);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    const double u = random.uniform(static_cast<uint64_t>(i));
    ids.push_back(static_cast<int32_t>(u * u * u * static_cast<double>(vocab)));
  }
  cuda::DeviceBuffer<int32_t> on_device;
  on_device.upload(ids, stream);
  stream.synchronize();
  return on_device;
}

/// The operations of one dense layer, and those around the layers, on buffers of zeros.
template <class T>
void run_parts(const scheduler::ModelConfig& c, int64_t sequences, const int32_t* tokens,
               Results& results, const cuda::Stream& stream) {
  const int64_t n = sequences * c.context, d = c.dim, f = c.ffn_dim, L = c.layers;
  const int64_t kv = c.kv_heads * c.head_dim(), ld = d + 2 * kv, widest = std::max(2 * f, ld);
  cuda::DeviceBuffer<T> narrow(n * d), other(n * d), wide(n * widest), d_wide(n * widest),
      weight(std::max(widest, c.vocab) * d);
  cuda::DeviceBuffer<float> x(n * d), d_x(n * d), inverse(n), gain(d), log_sum(n * c.heads),
      d_weight(std::max(widest, c.vocab) * d);
  cuda::DeviceBuffer<double> loss(1);
  for (auto* b : {&narrow, &other, &wide, &d_wide, &weight}) b->zero(stream);
  for (auto* b : {&x, &d_x, &inverse, &gain, &log_sum, &d_weight}) b->zero(stream);
  Gemm gemm;
  ColumnSums columns;
  AttentionWorkspace attention;
  EmbeddingWorkspace embed;
  CrossEntropyWorkspace<T> cross;
  const DeviceRope rope(c.context, c.head_dim(), c.rope_base);
  const AttentionShape shape{sequences, c.context, c.heads, c.kv_heads, c.head_dim()};
  T *q = wide.data(), *d_q = d_wide.data();

  results.run("rms norm, forward", 2 * L + 1, [&] {
    ops::rms_norm_forward(x.data(), narrow.data(), gain.data(), 1e-5f, n, d, x.data(), other.data(),
                          inverse.data(), stream);
  });
  results.run("rms norm, backward", 2 * L + 1, [&] {
    ops::rms_norm_backward(narrow.data(), x.data(), gain.data(), inverse.data(), n, d, d_x.data(),
                           d_x.data(), other.data(), gain.data(), columns, stream);
  });
  results.run("rotary embedding", 2 * L, [&] { rope.rotate(q, n, d + kv, ld, stream); });
  results.run("attention, forward", L, [&] {
    ops::causal_attention_forward(shape, q, q + d, q + d + kv, ld, ld, ld, narrow.data(),
                                  log_sum.data(), attention, stream);
  });
  results.run("attention, backward", L, [&] {
    ops::causal_attention_backward(shape, q, q + d, q + d + kv, ld, ld, ld, narrow.data(),
                                   log_sum.data(), other.data(), d_q, d_q + d, d_q + d + kv, ld, ld,
                                   ld, attention, stream);
  });
  results.run("swiglu, forward", L,
              [&] { ops::swiglu_forward(wide.data(), n, f, d_wide.data(), stream); });
  results.run("swiglu, backward", L,
              [&] { ops::swiglu_backward(wide.data(), d_wide.data(), n, f, wide.data(), stream); });
  struct Product {
    const char* name;
    int64_t in, out;
  };
  for (const auto& [name, in, out] : {Product{"qkv", d, ld}, Product{"attention out", d, d},
                                      Product{"gate and up", d, 2 * f}, Product{"down", f, d}}) {
    results.run(fmt::format("product {}, forward", name), L, [&, in = in, out = out] {
      ops::linear_forward(gemm, n, in, out, wide.data(), weight.data(), d_wide.data(), out, stream);
    });
    results.run(fmt::format("product {}, input's gradient", name), L, [&, in = in, out = out] {
      ops::linear_backward_input(gemm, n, in, out, wide.data(), out, weight.data(), d_wide.data(),
                                 stream);
    });
    results.run(fmt::format("product {}, weight's gradient", name), L, [&, in = in, out = out] {
      ops::linear_backward_weight(gemm, n, in, out, wide.data(), out, d_wide.data(),
                                  d_weight.data(), stream);
    });
  }
  results.run("loss and its gradients", 1, [&] {
    const CrossEntropyInput<T> input{n, d, c.vocab, narrow.data(), weight.data(), tokens};
    ops::cross_entropy_backward(gemm, input, 1.0f, loss.data(), other.data(), d_weight.data(),
                                cross, stream);
  });
  results.run("embedding, backward", 1, [&] {
    ops::embedding_backward(tokens, d_x.data(), n, c.vocab, d, d_weight.data(), embed, stream);
  });
}

template <class T>
nlohmann::json bench(const GpuTrunkOptions& o) {
  scheduler::ModelConfig c = scheduler::preset(o.preset);
  c.moe_layers.clear();
  c.vocab = o.vocab;
  if (o.layers > 0) c.layers = o.layers;
  const cuda::Stream stream;
  const int64_t n = o.sequences * c.context;
  scheduler::ParameterSet set;
  const std::vector<scheduler::MoeSlot*> no_slots(static_cast<std::size_t>(c.layers));
  const scheduler::Trunk host(c, set, static_cast<uint64_t>(o.seed), no_slots);
  DeviceParameters<T> parameters(set);
  parameters.upload(stream);
  DeviceTrunk<T> trunk(c, set, parameters,
                       std::vector<DeviceMoeSlot<T>*>(static_cast<std::size_t>(c.layers)));
  const auto tokens = tokens_like_text(n, c.vocab, 1, stream);
  const auto targets = tokens_like_text(n, c.vocab, 2, stream);
  cuda::DeviceBuffer<double> loss(1);
  const auto forward_backward = [&] {
    trunk.forward_backward(tokens.data(), targets.data(), o.sequences, 1.0f / static_cast<float>(n),
                           loss.data(), stream);
  };
  fmt::print("{}; {} with {} layers, vocabulary {}, {} sequences of {}, {}\n",
             cuda::device_properties().name, o.preset, c.layers, c.vocab, o.sequences, c.context,
             o.type);
  Results results(stream, o);
  loss.zero(stream);
  results.run("forward and loss", 1, [&] {
    trunk.forward_loss(tokens.data(), targets.data(), o.sequences, loss.data(), stream);
  });
  results.run("forward and backward", 1, forward_backward);
  const CapturedCall captured(stream, forward_backward);
  const double milliseconds =
      results.run("forward and backward as a CUDA graph", 1, [&] { captured.run(); });
  fmt::print("  {:.0f} tokens/s as a graph\n", 1e3 * static_cast<double>(n) / milliseconds);

  GradientNormWorkspace norm;
  cuda::DeviceBuffer<GradientSquares> squares(1);
  int64_t step = 0;
  results.run("gradient norm", 1,
              [&] { ops::gradient_norm(parameters, squares.data(), norm, stream); });
  results.run("AdamW", 1,
              [&] { adamw_step(parameters, {}, 1e-3f, ++step, nullptr, nullptr, stream); });
  run_parts<T>(c, o.sequences, tokens.data(), results, stream);
  return {{"benchmark", "trunk-gpu"},
          {"data", "synthetic tokens; parts on zeros"},
          {"device", device_json()},
          {"preset", o.preset},
          {"layers", c.layers},
          {"vocab", c.vocab},
          {"tokens", n},
          {"compute_type", o.type},
          {"parameters", parameters.size()},
          {"activation_bytes", trunk.activation_bytes()},
          {"tokens_per_second", 1e3 * static_cast<double>(n) / milliseconds},
          {"milliseconds", results.json()}};
}

}  // namespace

ExitCode run_trunk_gpu(int argc, char** argv) {
  GpuTrunkOptions o;
  boost::program_options::options_description options("Trunk on a GPU", 100, 60);
  add_count(options, "sequences", o.sequences, 1, "sequences per micro-batch");
  add_count(options, "vocab", o.vocab, 1, "vocabulary V");
  add_count(options, "layers", o.layers, 0, "layers; 0: the preset's");
  add_count(options, "repetitions", o.repetitions, 1, "timed repetitions");
  add_count(options, "warm-up", o.warm_up, 0, "repetitions before those");
  add_count(options, "seed", o.seed, 0, "seed of the random data");
  namespace po = boost::program_options;
  options.add_options()("preset", po::value(&o.preset)->value_name("NAME")->default_value(o.preset),
                        "tiny, small, medium or large; its MoE layer is a dense one here")(
      "compute-type", po::value(&o.type)->value_name("NAME")->default_value(o.type), "bf16 or f32")(
      "json", po::value(&o.json)->value_name("FILE"), "write the results there too");
  if (!parse(argc, argv, "airmoe-bench trunk-gpu: the trunk on a CUDA device", options)) {
    return ExitCode::ok;
  }
  cuda::use_device(0);
  const bool f32 = scheduler::parse_compute_type(o.type) == scheduler::ComputeType::f32;
  write_json(o.json, f32 ? bench<float>(o) : bench<__nv_bfloat16>(o));
  return ExitCode::ok;
}

}  // namespace airmoe::bench
