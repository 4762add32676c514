#pragma once
// What tests of whole models on devices share: whether there is a device, a small model, tokens
// with structure.

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "comm/base/cuda/device.hpp"
#include "comm/base/random.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::test {

/// Prints why there is none.
inline bool no_device() {
  std::string reason;
  if (cuda::device_count(&reason) > 0) return false;
  std::printf("skipped: %s\n", reason.c_str());
  return true;
}

/// A model of `layers` layers `dim` wide, of which layer 1 is an MoE layer; context, vocabulary and
/// the MoE layer's sizes follow from the width, and may be changed.
inline scheduler::TrainConfig small_model(int64_t layers, int64_t dim, uint64_t seed) {
  scheduler::TrainConfig c;
  c.model.layers = layers;
  c.model.dim = dim;
  c.model.heads = dim / 32;
  c.model.kv_heads = dim / 64;
  c.model.ffn_dim = 2 * dim;
  c.model.context = dim;
  c.model.vocab = 96;
  c.model.moe_layers = {1};
  c.model.experts = 1536;
  c.model.active = 32;
  c.model.codewords = 16;
  c.model.shortlist = 128;
  c.batch = 8;
  c.seed = seed;
  return c;
}

struct Batch {
  std::vector<int32_t> tokens, targets;
};

/// `count` tokens of a walk through the vocabulary whose next step depends on where it is and on a
/// draw out of four; targets are the tokens after them.
inline Batch walk(int64_t count, int64_t vocab, int64_t step) {
  const RandomStream random(7, Purpose::test_data, static_cast<uint32_t>(step));
  Batch b;
  int32_t token = 0;
  for (int64_t i = 0; i <= count; ++i) {
    const auto draw = static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * 4);
    token = static_cast<int32_t>((token * 5 + 17 + draw) % vocab);
    if (i < count) b.tokens.push_back(token);
    if (i > 0) b.targets.push_back(token);
  }
  return b;
}

}  // namespace airmoe::test
