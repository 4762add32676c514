#pragma once
// Shape of the language model and of its MoE layers. Everything here is part of a checkpoint's
// identity: two configurations with the same values build the same parameters.

#include <cstdint>
#include <string>
#include <vector>

#include "experts/expert_table.hpp"

namespace airmoe::scheduler {

using experts::ExpertActivation;

struct ModelConfig {
  int64_t layers = 4;
  int64_t dim = 128;  ///< d
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t ffn_dim = 384;  ///< hidden width of the dense SwiGLU FFN
  int64_t context = 128;  ///< tokens per sequence
  int64_t vocab = 256;
  float rope_base = 5e5f;
  float norm_epsilon = 1e-5f;

  std::vector<int64_t> moe_layers;  ///< layers whose FFN is an MoE layer, ascending, from 0
  int64_t experts = 4096;           ///< E
  int64_t active = 32;              ///< K
  int64_t expert_dim = 1;           ///< m
  ExpertActivation expert_activation = ExpertActivation::gelu;
  int64_t codewords = 64;        ///< G
  int64_t shortlist = 256;       ///< M
  float codebook_decay = 0.95f;  ///< gamma
  float dead_threshold = 1.0f;   ///< tau
  float jitter = 0.01f;          ///< standard deviation, training only
  float balance_weight = 0.01f;  ///< weight of the switch-style balance loss

  int64_t head_dim() const { return dim / heads; }
  bool is_moe_layer(int64_t layer) const;

  /// Throws Error(ExitCode::config) naming the option, its value and the remedy.
  void validate() const;
};

/// "tiny", "small", "medium" or "large" (the last three: paper, table "Model").
/// Throws Error(ExitCode::usage) naming the presets for any other name.
ModelConfig preset(const std::string& name);

const char* name_of(ExpertActivation activation);
ExpertActivation parse_expert_activation(const std::string& name);

}  // namespace airmoe::scheduler
