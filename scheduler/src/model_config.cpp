#include "scheduler/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {
namespace {

constexpr int64_t kLargestId = std::numeric_limits<int32_t>::max();

void require_positive(const char* option, int64_t value) {
  if (value < 1) fail(ExitCode::config, "{} {} is not positive: choose 1 or more", option, value);
}

/// Token, expert and codeword ids travel as 32-bit integers.
void require_id_range(const char* option, int64_t value) {
  require_positive(option, value);
  if (value > kLargestId) {
    fail(ExitCode::config, "{} {} is too large: choose at most {}", option, value, kLargestId);
  }
}

void require_divisible(const char* option, int64_t value, const char* by_option, int64_t by) {
  if (value % by != 0) {
    fail(ExitCode::config, "{} {} is not a multiple of {} {}: choose {} {}", option, value,
         by_option, by, option, (value + by - 1) / by * by);
  }
}

void require_finite_at_least_zero(const char* option, float value) {
  if (!std::isfinite(value) || value < 0) {
    fail(ExitCode::config, "{} {} is not a finite number >= 0: choose 0 or more", option, value);
  }
}

void require_finite_positive(const char* option, float value) {
  if (!std::isfinite(value) || value <= 0) {
    fail(ExitCode::config, "{} {} is not a finite number > 0: choose a positive one", option,
         value);
  }
}

void validate_trunk(const ModelConfig& c) {
  require_positive("--layers", c.layers);
  require_positive("--dim", c.dim);
  require_positive("--heads", c.heads);
  require_positive("--kv-heads", c.kv_heads);
  require_positive("--ffn-dim", c.ffn_dim);
  require_positive("--context", c.context);
  require_id_range("--vocab", c.vocab);
  if (c.layers > 100) {
    fail(ExitCode::config, "--layers {} is too many: choose at most 100 (names have two digits)",
         c.layers);
  }
  require_divisible("--dim", c.dim, "--heads", c.heads);
  require_divisible("--heads", c.heads, "--kv-heads", c.kv_heads);
  if (c.head_dim() % 2 != 0) {
    fail(ExitCode::config,
         "--dim {} over --heads {} gives heads of odd width {}: RoPE turns pairs, choose --dim so "
         "that --dim / --heads is even",
         c.dim, c.heads, c.head_dim());
  }
  require_finite_positive("--rope-base", c.rope_base);
  require_finite_positive("--norm-epsilon", c.norm_epsilon);
}

void validate_moe_layers(const ModelConfig& c) {
  int64_t previous = -1;
  for (const int64_t layer : c.moe_layers) {
    if (layer < 0 || layer >= c.layers) {
      fail(ExitCode::config, "--moe-layers {} is outside --layers {}: choose from 0 to {}", layer,
           c.layers, c.layers - 1);
    }
    if (layer == previous) {
      fail(ExitCode::config, "--moe-layers names layer {} twice: name each layer once", layer);
    }
    if (layer < previous) {
      fail(ExitCode::config, "--moe-layers has {} after {}: name the layers in ascending order",
           layer, previous);
    }
    previous = layer;
  }
}

void validate_moe(const ModelConfig& c) {
  require_id_range("--experts", c.experts);
  require_positive("--active", c.active);
  require_positive("--expert-dim", c.expert_dim);
  require_id_range("--codewords", c.codewords);
  require_positive("--shortlist", c.shortlist);
  if (c.shortlist > c.experts) {
    fail(ExitCode::config, "--shortlist {} is larger than --experts {}: choose M <= E", c.shortlist,
         c.experts);
  }
  if (c.active > c.shortlist) {
    fail(ExitCode::config, "--active {} is larger than --shortlist {}: choose K <= M", c.active,
         c.shortlist);
  }
  if (!(c.codebook_decay >= 0.0f && c.codebook_decay < 1.0f)) {
    fail(ExitCode::config, "--codebook-decay {} is outside [0, 1): choose for example 0.95",
         c.codebook_decay);
  }
  require_finite_at_least_zero("--dead-threshold", c.dead_threshold);
  require_finite_at_least_zero("--jitter", c.jitter);
  require_finite_at_least_zero("--balance-weight", c.balance_weight);
}

/// One row of the paper's model table; its MoE layer is the middle one.
ModelConfig paper_preset(int64_t layers, int64_t dim, int64_t ffn_dim, int64_t heads,
                         int64_t kv_heads) {
  ModelConfig config;
  config.layers = layers;
  config.dim = dim;
  config.ffn_dim = ffn_dim;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.context = 1024;
  config.moe_layers = {layers / 2};
  config.experts = 65536;
  config.active = 512;
  config.shortlist = 2048;
  config.codewords = 512;
  config.expert_dim = 1;
  return config;
}

}  // namespace

bool ModelConfig::is_moe_layer(int64_t layer) const {
  return std::find(moe_layers.begin(), moe_layers.end(), layer) != moe_layers.end();
}

void ModelConfig::validate() const {
  validate_trunk(*this);
  validate_moe_layers(*this);
  if (!moe_layers.empty()) validate_moe(*this);
}

ModelConfig preset(const std::string& name) {
  if (name == "tiny") {
    ModelConfig config;
    config.moe_layers = {config.layers / 2};
    return config;
  }
  if (name == "small") return paper_preset(16, 256, 768, 4, 1);
  if (name == "medium") return paper_preset(24, 512, 1536, 8, 2);
  if (name == "large") return paper_preset(24, 768, 2048, 12, 4);
  fail(ExitCode::usage, "--preset {} is unknown: choose tiny, small, medium or large", name);
}

const char* name_of(ExpertActivation activation) {
  switch (activation) {
    case ExpertActivation::gelu:
      return "gelu";
    case ExpertActivation::silu:
      return "silu";
    case ExpertActivation::relu:
      return "relu";
    case ExpertActivation::swiglu:
      return "swiglu";
  }
  return "?";
}

ExpertActivation parse_expert_activation(const std::string& name) {
  for (const auto activation : {ExpertActivation::gelu, ExpertActivation::silu,
                                ExpertActivation::relu, ExpertActivation::swiglu}) {
    if (name == name_of(activation)) return activation;
  }
  fail(ExitCode::usage, "--expert-activation {} is unknown: choose gelu, silu, relu or swiglu",
       name);
}

}  // namespace airmoe::scheduler
