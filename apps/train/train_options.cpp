#include "apps/train/train_options.hpp"

#include <charconv>

#include "comm/base/error.hpp"

namespace airmoe::apps {

namespace po = boost::program_options;
using scheduler::TrainConfig;

namespace {

// "1,5,10" to numbers.
std::vector<int64_t> parse_list(const char* option, const std::string& text) {
  std::vector<int64_t> numbers;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    int64_t value = 0;
    const auto result = std::from_chars(text.data() + begin, text.data() + end, value);
    if (result.ec != std::errc() || result.ptr != text.data() + end) {
      fail(ExitCode::usage, "--{} {}: give whole numbers separated by commas, for example 1,5,10",
           option, text);
    }
    numbers.push_back(value);
    begin = end + 1;
  }
  return numbers;
}

// Learning rate and length that suit a preset; the shapes come from scheduler::preset().
void apply_preset(const std::string& name, TrainConfig& config) {
  config.preset = name;
  config.model = scheduler::preset(name);
  if (name != "tiny") {
    config.learning_rate = 3e-4;  // paper
    config.steps = 1000;
  }
}

}  // namespace

template <class T, class Set>
void TrainOptions::add(po::options_description& group, const char* name, const char* value_name,
                       const std::string& help, Set set) {
  group.add_options()(name, po::value<T>()->value_name(value_name), help.c_str());
  setters_.emplace_back(name, [set](const po::variable_value& value, TrainConfig& config) {
    set(config, value.as<T>());
  });
}

TrainOptions::TrainOptions() : description_("Options", 100, 60) {
  add_model();
  add_router();
  add_data();
  add_training();
  add_output();
}

void TrainOptions::add_model() {
  po::options_description group("Model (defaults: preset tiny)", 100, 60);
  const TrainConfig d;
  const auto integer = [&](const char* name, const std::string& help,
                           int64_t scheduler::ModelConfig::*field) {
    add<int64_t>(group, name, "N", fmt::format("{} ({})", help, d.model.*field),
                 [field](TrainConfig& c, int64_t v) { c.model.*field = v; });
  };
  add<std::string>(group, "preset", "NAME", "tiny, small, medium or large: sets all shapes (tiny)",
                   [](TrainConfig&, const std::string&) {});
  integer("layers", "decoder blocks", &scheduler::ModelConfig::layers);
  integer("dim", "model width d", &scheduler::ModelConfig::dim);
  integer("heads", "attention heads", &scheduler::ModelConfig::heads);
  integer("kv-heads", "key/value heads", &scheduler::ModelConfig::kv_heads);
  integer("ffn-dim", "hidden width of the dense FFN", &scheduler::ModelConfig::ffn_dim);
  integer("context", "tokens per sequence", &scheduler::ModelConfig::context);
  add<int64_t>(group, "vocab", "N", "vocabulary; 0: what the data needs, 256 for text (0)",
               [](TrainConfig& c, int64_t v) { c.model.vocab = v; });
  add<std::string>(
      group, "moe-layers", "LIST",
      "layers with an MoE layer in place of the FFN, from 0, for example 1,2; none: a dense "
      "model (the middle one)",
      [](TrainConfig& c, const std::string& v) {
        c.model.moe_layers = v == "none" ? std::vector<int64_t>{} : parse_list("moe-layers", v);
      });
  integer("experts", "experts E per MoE layer", &scheduler::ModelConfig::experts);
  integer("active", "active experts K per token", &scheduler::ModelConfig::active);
  integer("expert-dim", "hidden units m per expert", &scheduler::ModelConfig::expert_dim);
  add<std::string>(group, "expert-activation", "NAME",
                   "gelu (exact, erf), silu, relu or swiglu (gelu)",
                   [](TrainConfig& c, const std::string& v) {
                     c.model.expert_activation = scheduler::parse_expert_activation(v);
                   });
  description_.add(group);
}

void TrainOptions::add_router() {
  po::options_description group("Router", 100, 60);
  const TrainConfig d;
  const auto integer = [&](const char* name, const std::string& help,
                           int64_t scheduler::ModelConfig::*field) {
    add<int64_t>(group, name, "N", fmt::format("{} ({})", help, d.model.*field),
                 [field](TrainConfig& c, int64_t v) { c.model.*field = v; });
  };
  const auto real = [&](const char* name, const std::string& help,
                        float scheduler::ModelConfig::*field) {
    add<float>(group, name, "X", fmt::format("{} ({})", help, d.model.*field),
               [field](TrainConfig& c, float v) { c.model.*field = v; });
  };
  integer("codewords", "codewords G", &scheduler::ModelConfig::codewords);
  integer("shortlist", "candidate experts M per codeword", &scheduler::ModelConfig::shortlist);
  real("codebook-decay", "moving-average decay gamma of counts and sums",
       &scheduler::ModelConfig::codebook_decay);
  real("dead-threshold", "a codeword with a lower count restarts, tau",
       &scheduler::ModelConfig::dead_threshold);
  real("jitter", "standard deviation of the noise on scores in training",
       &scheduler::ModelConfig::jitter);
  real("balance-weight", "weight of the balance loss", &scheduler::ModelConfig::balance_weight);
  add<std::string>(group, "expert-path", "NAME",
                   "how experts run: auto, dense (per codeword) or grouped (per expert) (auto)",
                   [](TrainConfig& c, const std::string& v) {
                     c.expert_path = scheduler::parse_expert_path(v);
                   });
  add<std::string>(
      group, "sum-precision", "NAME",
      "sums over ranks: f64, the result does not depend on the rank count, or f32, half the "
      "bytes (f64)",
      [](TrainConfig& c, const std::string& v) { c.sums = scheduler::parse_sum_precision(v); });
  description_.add(group);
  add_exchange();
}

void TrainOptions::add_exchange() {
  po::options_description group("Exchange (none of these but --rank-cap changes the result)", 100,
                                60);
  const scheduler::ExchangeConfig d = TrainConfig{}.exchange;
  const auto at_least = [&](const char* name, const std::string& help, int64_t least,
                            int64_t scheduler::ExchangeConfig::*field) {
    add<int64_t>(group, name, "N", fmt::format("{} ({})", help, d.*field),
                 [name, least, field](TrainConfig& c, int64_t v) {
                   if (v < least) {
                     fail(ExitCode::config, "--{} {}: give a number of at least {}", name, v,
                          least);
                   }
                   c.exchange.*field = v;
                 });
  };
  add<std::string>(
      group, "exchange", "NAME",
      "cover: tokens go to the ranks that hold their candidates; selected: to the owners of "
      "selected experts; gather: experts come to the tokens; auto: what is predicted to be fastest "
      "(auto)",
      [](TrainConfig& c, const std::string& v) {
        c.exchange.exchange = scheduler::parse_exchange(v);
      });
  add<double>(group, "copy-budget", "X",
              fmt::format("experts with a row on a rank, owned ones and copies, at most X times "
                          "experts / ranks; 1: no copies ({})",
                          d.copy_budget),
              [](TrainConfig& c, double v) {
                if (!(v >= 1.0)) {
                  fail(ExitCode::config, "--copy-budget {}: give a multiple of at least 1", v);
                }
                c.exchange.copy_budget = v;
              });
  at_least("replan-every", "steps between placements", 1, &scheduler::ExchangeConfig::replan_every);
  add<std::string>(group, "move-homes", "YESNO",
                   "whether placements may give experts to other owners: yes or no (yes)",
                   [](TrainConfig& c, const std::string& v) {
                     if (v != "yes" && v != "no") {
                       fail(ExitCode::usage, "--move-homes {}: give yes or no", v);
                     }
                     c.exchange.move_homes = v == "yes";
                   });
  at_least("overlap-chunks", "pieces of a micro-batch whose exchange and compute overlap", 1,
           &scheduler::ExchangeConfig::overlap_chunks);
  at_least("rank-cap", "most owners that a shortlist may span; 0: any. CHANGES THE MODEL", 0,
           &scheduler::ExchangeConfig::rank_cap);
  add<std::string>(group, "network", "FILE",
                   "JSON of airmoe-bench network: latency, bandwidth and speed that auto predicts "
                   "with (those of a 100 Gbit/s network)",
                   [](TrainConfig& c, const std::string& v) {
                     c.exchange.machine = scheduler::read_machine_constants(v);
                   });
  description_.add(group);
}

void TrainOptions::add_data() {
  po::options_description group("Data", 100, 60);
  const TrainConfig d;
  add<std::vector<std::string>>(
      group, "data", "PATH...",
      fmt::format("text files and folders (as bytes), or .bin token files ({})",
                  scheduler::kDefaultCorpus),
      [](TrainConfig& c, const std::vector<std::string>& v) { c.data = v; });
  add<int64_t>(group, "data-max-bytes", "BYTES",
               fmt::format("most text to take from folders ({})", d.data_max_bytes),
               [](TrainConfig& c, int64_t v) { c.data_max_bytes = v; });
  add<std::string>(
      group, "token-type", "NAME", "ids in .bin files without header: u16 or u32 (u16)",
      [](TrainConfig& c, const std::string& v) { c.token_type = scheduler::parse_token_type(v); });
  add<double>(group, "validation-fraction", "X",
              fmt::format("share of the data kept for validation ({})", d.validation_fraction),
              [](TrainConfig& c, double v) { c.validation_fraction = v; });
  description_.add(group);
}

void TrainOptions::add_training() {
  po::options_description group("Training", 100, 60);
  const TrainConfig d;
  const auto integer = [&](const char* name, const std::string& help, int64_t TrainConfig::*field) {
    add<int64_t>(group, name, "N", fmt::format("{} ({})", help, d.*field),
                 [field](TrainConfig& c, int64_t v) { c.*field = v; });
  };
  const auto adam = [&](const char* name, const std::string& help,
                        float scheduler::AdamWOptions::*field) {
    add<float>(group, name, "X", fmt::format("{} ({})", help, d.adamw.*field),
               [field](TrainConfig& c, float v) { c.adamw.*field = v; });
  };
  integer("steps", "last optimizer step, counted from 1; 1000 for other presets than tiny",
          &TrainConfig::steps);
  integer("schedule-steps", "length of the learning-rate schedule in steps; 0: --steps",
          &TrainConfig::schedule_steps);
  integer("batch", "sequences per step over all ranks and micro-batches", &TrainConfig::batch);
  integer("accumulate", "micro-batches per step", &TrainConfig::accumulate);
  add<double>(
      group, "lr", "X",
      fmt::format("peak learning rate ({}; 0.0003 for other presets than tiny)", d.learning_rate),
      [](TrainConfig& c, double v) { c.learning_rate = v; });
  add<int64_t>(group, "warmup", "N", "steps of linear warm-up (5 % of the schedule)",
               [](TrainConfig& c, int64_t v) {
                 if (v < 0)
                   fail(ExitCode::config, "--warmup {}: give a number of steps of at least 0", v);
                 c.warmup = v;
               });
  add<std::string>(group, "schedule", "NAME", "linear or cosine decay after the warm-up (linear)",
                   [](TrainConfig& c, const std::string& v) {
                     c.schedule = scheduler::parse_schedule_shape(v);
                   });
  add<double>(group, "final-lr-fraction", "X",
              "share of --lr left at the end of the schedule (0 for linear, 0.1 for cosine)",
              [](TrainConfig& c, double v) {
                if (!(v >= 0 && v <= 1)) {
                  fail(ExitCode::config, "--final-lr-fraction {}: give a share from 0 to 1", v);
                }
                c.final_lr_fraction = v;
              });
  adam("beta1", "AdamW", &scheduler::AdamWOptions::beta1);
  adam("beta2", "AdamW", &scheduler::AdamWOptions::beta2);
  adam("adam-epsilon", "AdamW", &scheduler::AdamWOptions::epsilon);
  adam("weight-decay", "AdamW, on matrices", &scheduler::AdamWOptions::weight_decay);
  add<double>(group, "clip", "X",
              fmt::format("largest global gradient norm; 0: no clipping ({})", d.clip),
              [](TrainConfig& c, double v) { c.clip = v; });
  add<std::string>(
      group, "device", "NAME", "where the training step runs: cpu or cuda (cpu)",
      [](TrainConfig& c, const std::string& v) { c.device = scheduler::parse_device(v); });
  add<std::string>(group, "cuda-graphs", "YESNO",
                   "whether --device cuda launches the trunk's kernels as graphs: yes or no (yes)",
                   [](TrainConfig& c, const std::string& v) {
                     if (v != "yes" && v != "no") {
                       fail(ExitCode::usage, "--cuda-graphs {}: give yes or no", v);
                     }
                     c.cuda_graphs = v == "yes";
                   });
  add<std::string>(group, "compute-type", "NAME",
                   "what matrix products of --device cuda read: bf16 or f32 (bf16)",
                   [](TrainConfig& c, const std::string& v) {
                     c.compute_type = scheduler::parse_compute_type(v);
                   });
  add<int64_t>(group, "seed", "N", fmt::format("seed of everything random ({})", d.seed),
               [](TrainConfig& c, int64_t v) {
                 if (v < 0) fail(ExitCode::config, "--seed {}: give a number of at least 0", v);
                 c.seed = static_cast<uint64_t>(v);
               });
  description_.add(group);
}

void TrainOptions::add_output() {
  po::options_description group("Evaluation, output, checkpoints", 100, 60);
  const TrainConfig d;
  const auto integer = [&](const char* name, const std::string& help, int64_t TrainConfig::*field) {
    add<int64_t>(group, name, "N", fmt::format("{} ({})", help, d.*field),
                 [field](TrainConfig& c, int64_t v) { c.*field = v; });
  };
  const auto text = [&](const char* name, const char* value_name, const std::string& help,
                        std::string TrainConfig::*field) {
    add<std::string>(group, name, value_name, help,
                     [field](TrainConfig& c, const std::string& v) { c.*field = v; });
  };
  integer("eval-every", "steps between evaluations; 0: at the end only", &TrainConfig::eval_every);
  integer("eval-sequences", "validation sequences per evaluation; 0: none",
          &TrainConfig::eval_sequences);
  integer("log-every", "steps between lines of metrics.jsonl", &TrainConfig::log_every);
  text("output-dir", "DIR", "metrics.jsonl, summary.json, config.resolved.json (runs/train)",
       &TrainConfig::output_dir);
  text("checkpoint-dir", "DIR", "checkpoints (OUTPUT-DIR/checkpoints)",
       &TrainConfig::checkpoint_dir);
  integer("checkpoint-every", "steps between checkpoints; 0: at the end and on a signal only",
          &TrainConfig::checkpoint_every);
  group.add_options()("no-checkpoint", "write no checkpoint, not even at the end");
  setters_.emplace_back("no-checkpoint",
                        [](const po::variable_value&, TrainConfig& c) { c.checkpoints = false; });
  add<std::string>(
      group, "checkpoint-fail", "WHAT",
      "when a checkpoint cannot be written: stop, or continue and try at the next one (stop)",
      [](TrainConfig& c, const std::string& v) {
        if (v != "stop" && v != "continue") {
          fail(ExitCode::usage, "--checkpoint-fail {}: give stop or continue", v);
        }
        c.checkpoint_failure_stops = v == "stop";
      });
  integer("keep", "newest checkpoints to keep", &TrainConfig::keep);
  text("resume", "PATH",
       "go on from a checkpoint file, from the newest good one of a folder, or auto: from the "
       "checkpoint "
       "folder if it holds one. Options that are not given are the checkpoint's",
       &TrainConfig::resume);
  text("trace", "FILE", "HDF5 file for what the MoE layers did in --trace-steps",
       &TrainConfig::trace);
  add<std::string>(
      group, "trace-steps", "LIST", "steps to trace, from 1, for example 1,100",
      [](TrainConfig& c, const std::string& v) { c.trace_steps = parse_list("trace-steps", v); });
  add<double>(group, "deadline", "SECONDS",
              fmt::format("longest wait for other ranks inside one call ({})", d.deadline_seconds),
              [](TrainConfig& c, double v) {  // here, because the communicator is made first
                if (!(v > 0)) fail(ExitCode::config, "--deadline {}: give seconds above 0", v);
                c.deadline_seconds = v;
              });
  group.add_options()("progress", po::value<std::string>()->value_name("WHEN"),
                      "progress line: auto (on a terminal), always or never (auto)");
  description_.add(group);
}

TrainConfig TrainOptions::resolve(const po::variables_map& given,
                                  const std::string& checkpoint_config) const {
  TrainConfig config;
  apply_preset("tiny", config);
  config.model.vocab = 0;
  if (given.count("preset") != 0) {
    apply_preset(given["preset"].as<std::string>(), config);
    config.model.vocab = 0;
  }
  if (!checkpoint_config.empty()) scheduler::from_json(checkpoint_config, config);
  const bool layers_changed = given.count("layers") != 0 && given.count("moe-layers") == 0;
  for (const auto& [name, set] : setters_) {
    if (given.count(name) != 0) set(given[name], config);
  }
  if (layers_changed) config.model.moe_layers = {config.model.layers / 2};  // the middle one
  return config;
}

}  // namespace airmoe::apps
