#include "scheduler/train/train_config.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

using nlohmann::json;

namespace {

json model_json(const ModelConfig& m) {
  return {{"layers", m.layers},         {"dim", m.dim},
          {"heads", m.heads},           {"kv_heads", m.kv_heads},
          {"ffn_dim", m.ffn_dim},       {"context", m.context},
          {"vocab", m.vocab},           {"moe_layers", m.moe_layers},
          {"experts", m.experts},       {"active", m.active},
          {"expert_dim", m.expert_dim}, {"expert_activation", name_of(m.expert_activation)},
          {"codewords", m.codewords},   {"shortlist", m.shortlist}};
}

template <class T>
void take(const json& object, const char* key, T& value) {
  if (const auto it = object.find(key); it != object.end()) value = it->template get<T>();
}

}  // namespace

LearningRateSchedule TrainConfig::learning_rate_schedule() const {
  LearningRateSchedule s;
  s.shape = schedule;
  s.peak = learning_rate;
  s.total_steps = schedule_length();
  s.warmup_steps = warmup >= 0 ? warmup : (s.total_steps + 10) / 20;
  s.final_fraction = final_lr_fraction >= 0 ? final_lr_fraction : default_final_fraction(schedule);
  return s;
}

std::string TrainConfig::checkpoint_directory() const {
  return checkpoint_dir.empty() ? output_dir + "/checkpoints" : checkpoint_dir;
}

void TrainConfig::validate() const {
  const auto at_least = [](const char* option, int64_t value, int64_t least, const char* remedy) {
    if (value < least) fail(ExitCode::config, "{} {}: {}", option, value, remedy);
  };
  model.validate();
  at_least("--steps", steps, 1, "give at least 1 optimizer step");
  at_least("--schedule-steps", schedule_steps, 0, "give a number of steps, or 0 for --steps");
  learning_rate_schedule().validate();
  at_least("--batch", batch, 1, "give at least 1 sequence per step");
  at_least("--accumulate", accumulate, 1, "give at least 1 micro-batch per step");
  at_least("--eval-every", eval_every, 0, "give a number of steps, or 0 for the end only");
  at_least("--eval-sequences", eval_sequences, 0, "give a number of sequences, or 0 for none");
  at_least("--log-every", log_every, 1, "give a number of steps of at least 1");
  at_least("--checkpoint-every", checkpoint_every, 0,
           "give a number of steps, or 0 for the end only (--no-checkpoint writes none)");
  at_least("--keep", keep, 1, "keep at least 1 checkpoint (--no-checkpoint writes none)");
  at_least("--data-max-bytes", data_max_bytes, 1, "give a number of bytes of at least 1");
  if (accumulate > batch) {
    fail(ExitCode::config,
         "--accumulate {} is larger than --batch {}: choose --accumulate <= --batch", accumulate,
         batch);
  }
  for (const auto& [option, beta] : {std::pair{"--beta1", adamw.beta1}, {"--beta2", adamw.beta2}}) {
    if (!(beta >= 0 && beta < 1)) {
      fail(ExitCode::config, "{} {}: give a number from 0 to below 1", option, beta);
    }
  }
  if (!(adamw.epsilon > 0 && std::isfinite(adamw.epsilon))) {
    fail(ExitCode::config, "--adam-epsilon {}: give a number above 0", adamw.epsilon);
  }
  if (!(adamw.weight_decay >= 0 && std::isfinite(adamw.weight_decay))) {
    fail(ExitCode::config, "--weight-decay {}: give a number of at least 0", adamw.weight_decay);
  }
  if (!(clip >= 0)) fail(ExitCode::config, "--clip {}: give a norm above 0, or 0 for none", clip);
  if (!(validation_fraction >= 0 && validation_fraction < 1)) {
    fail(ExitCode::config, "--validation-fraction {}: give a fraction from 0 to below 1",
         validation_fraction);
  }
  if (!(deadline_seconds > 0)) {
    fail(ExitCode::config, "--deadline {}: give seconds above 0", deadline_seconds);
  }
  if (batch * model.context > (int64_t{1} << 31) - 1) {
    fail(ExitCode::config,
         "--batch {} x --context {} is more than 2^31 tokens per step: choose less", batch,
         model.context);
  }
  if (trace.empty() != trace_steps.empty()) {
    fail(ExitCode::config, "--trace and --trace-steps go together: {} is missing",
         trace.empty() ? "--trace FILE" : "--trace-steps LIST");
  }
  for (const int64_t step : trace_steps) {
    if (step < 1 || step > steps) {
      fail(ExitCode::config, "--trace-steps {}: steps are counted from 1 to --steps {}", step,
           steps);
    }
  }
  if (!trace.empty() && model.moe_layers.empty()) {
    fail(ExitCode::config, "--trace {}: the model has no MoE layer, give --moe-layers", trace);
  }
}

const char* name_of(experts::Path path) {
  switch (path) {
    case experts::Path::automatic:
      return "auto";
    case experts::Path::dense:
      return "dense";
    case experts::Path::grouped:
      return "grouped";
  }
  return "?";
}

experts::Path parse_expert_path(const std::string& name) {
  for (const auto path : {experts::Path::automatic, experts::Path::dense, experts::Path::grouped}) {
    if (name == name_of(path)) return path;
  }
  fail(ExitCode::usage, "--expert-path {}: give auto, dense or grouped", name);
}

const char* name_of(SumPrecision precision) {
  return precision == SumPrecision::f64 ? "f64" : "f32";
}

SumPrecision parse_sum_precision(const std::string& name) {
  if (name == "f64") return SumPrecision::f64;
  if (name == "f32") return SumPrecision::f32;
  fail(ExitCode::usage, "--sum-precision {}: give f64 or f32", name);
}

std::string to_json(const TrainConfig& c) {
  json j = model_json(c.model);
  j["preset"] = c.preset;
  j["codebook_decay"] = c.model.codebook_decay;
  j["dead_threshold"] = c.model.dead_threshold;
  j["jitter"] = c.model.jitter;
  j["balance_weight"] = c.model.balance_weight;
  j["rope_base"] = c.model.rope_base;
  j["norm_epsilon"] = c.model.norm_epsilon;
  j["data"] = c.data;
  j["data_max_bytes"] = c.data_max_bytes;
  j["token_type"] = c.token_type == TokenType::u16 ? "u16" : "u32";
  j["validation_fraction"] = c.validation_fraction;
  j["steps"] = c.steps;
  j["schedule_steps"] = c.schedule_steps;
  j["batch"] = c.batch;
  j["accumulate"] = c.accumulate;
  j["lr"] = c.learning_rate;
  j["warmup"] = c.warmup;
  j["schedule"] = name_of(c.schedule);
  j["final_lr_fraction"] = c.final_lr_fraction;
  j["beta1"] = c.adamw.beta1;
  j["beta2"] = c.adamw.beta2;
  j["adam_epsilon"] = c.adamw.epsilon;
  j["weight_decay"] = c.adamw.weight_decay;
  j["clip"] = c.clip;
  j["seed"] = c.seed;
  j["device"] = name_of(c.device);  // for people: a checkpoint goes on wherever --device says
  j["cuda_graphs"] = c.cuda_graphs;
  j["compute_type"] = name_of(c.compute_type);
  j["expert_path"] = name_of(c.expert_path);
  j["sum_precision"] = name_of(c.sums);
  j["exchange"] = name_of(c.exchange.exchange);
  j["copy_budget"] = c.exchange.copy_budget;
  j["replan_every"] = c.exchange.replan_every;
  j["move_homes"] = c.exchange.move_homes;
  j["overlap_chunks"] = c.exchange.overlap_chunks;
  j["rank_cap"] = c.exchange.rank_cap;
  j["eval_every"] = c.eval_every;
  j["eval_sequences"] = c.eval_sequences;
  j["log_every"] = c.log_every;
  j["checkpoint_every"] = c.checkpoint_every;
  j["keep"] = c.keep;
  return j.dump();
}

void from_json(const std::string& text, TrainConfig& c) {
  try {
    const json j = json::parse(text);
    take(j, "preset", c.preset);
    take(j, "layers", c.model.layers);
    take(j, "dim", c.model.dim);
    take(j, "heads", c.model.heads);
    take(j, "kv_heads", c.model.kv_heads);
    take(j, "ffn_dim", c.model.ffn_dim);
    take(j, "context", c.model.context);
    take(j, "vocab", c.model.vocab);
    take(j, "moe_layers", c.model.moe_layers);
    take(j, "experts", c.model.experts);
    take(j, "active", c.model.active);
    take(j, "expert_dim", c.model.expert_dim);
    if (j.contains("expert_activation")) {
      c.model.expert_activation =
          parse_expert_activation(j["expert_activation"].get<std::string>());
    }
    take(j, "codewords", c.model.codewords);
    take(j, "shortlist", c.model.shortlist);
    take(j, "codebook_decay", c.model.codebook_decay);
    take(j, "dead_threshold", c.model.dead_threshold);
    take(j, "jitter", c.model.jitter);
    take(j, "balance_weight", c.model.balance_weight);
    take(j, "rope_base", c.model.rope_base);
    take(j, "norm_epsilon", c.model.norm_epsilon);
    take(j, "data", c.data);
    take(j, "data_max_bytes", c.data_max_bytes);
    if (j.contains("token_type"))
      c.token_type = parse_token_type(j["token_type"].get<std::string>());
    take(j, "validation_fraction", c.validation_fraction);
    take(j, "steps", c.steps);
    take(j, "schedule_steps", c.schedule_steps);
    take(j, "batch", c.batch);
    take(j, "accumulate", c.accumulate);
    take(j, "lr", c.learning_rate);
    take(j, "warmup", c.warmup);
    if (j.contains("schedule")) c.schedule = parse_schedule_shape(j["schedule"].get<std::string>());
    take(j, "final_lr_fraction", c.final_lr_fraction);
    take(j, "beta1", c.adamw.beta1);
    take(j, "beta2", c.adamw.beta2);
    take(j, "adam_epsilon", c.adamw.epsilon);
    take(j, "weight_decay", c.adamw.weight_decay);
    take(j, "clip", c.clip);
    take(j, "seed", c.seed);
    take(j, "cuda_graphs", c.cuda_graphs);
    if (j.contains("compute_type")) {
      c.compute_type = parse_compute_type(j["compute_type"].get<std::string>());
    }
    if (j.contains("expert_path")) {
      c.expert_path = parse_expert_path(j["expert_path"].get<std::string>());
    }
    if (j.contains("sum_precision")) {
      c.sums = parse_sum_precision(j["sum_precision"].get<std::string>());
    }
    if (j.contains("exchange")) {
      c.exchange.exchange = parse_exchange(j["exchange"].get<std::string>());
    }
    take(j, "copy_budget", c.exchange.copy_budget);
    take(j, "replan_every", c.exchange.replan_every);
    take(j, "move_homes", c.exchange.move_homes);
    take(j, "overlap_chunks", c.exchange.overlap_chunks);
    take(j, "rank_cap", c.exchange.rank_cap);
    take(j, "eval_every", c.eval_every);
    take(j, "eval_sequences", c.eval_sequences);
    take(j, "log_every", c.log_every);
    take(j, "checkpoint_every", c.checkpoint_every);
    take(j, "keep", c.keep);
  } catch (const json::exception& e) {
    fail(ExitCode::bad_data, "the configuration inside the checkpoint is not readable: {}",
         e.what());
  }
}

std::string model_digest(const ModelConfig& model) {
  return model_json(model).dump();
}

void check_same_model(const std::string& checkpoint, const std::string& checkpoint_digest,
                      const ModelConfig& model) {
  const json theirs = json::parse(checkpoint_digest, nullptr, false);
  if (theirs.is_discarded() || !theirs.is_object()) {
    fail(ExitCode::bad_data, "{}: its model_digest is not readable", checkpoint);
  }
  const json ours = model_json(model);
  for (const auto& [key, value] : ours.items()) {
    const json stored = theirs.value(key, json());
    if (stored == value) continue;
    std::string option = key;
    std::replace(option.begin(), option.end(), '_', '-');
    fail(ExitCode::config,
         "{}: saved with --{} {}, this run has --{} {}: give the same value, or leave it out to "
         "take the "
         "checkpoint's",
         checkpoint, option, stored.dump(), option, value.dump());
  }
}

}  // namespace airmoe::scheduler
