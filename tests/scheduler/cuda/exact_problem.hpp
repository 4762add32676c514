#pragma once
// An MoE layer in which bf16 and fp32 select the same experts: everything that a kernel reads is
// exact in bf16 (codewords and unit centroids too), scores are multiples of 2^-10 that fp32 adds up
// exactly and keys tell apart (they are some 2^-12 apart), and lists end at a gap. What differs is
// then what kernels round to bf16 in between.

#include <cmath>
#include <cstdint>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/random.hpp"
#include "tests/scheduler/oracle/moe_problem.hpp"

namespace airmoe::oracle {

/// Codeword g is 1/4 at the 16 columns of block g, 0 elsewhere; G = d / 16. Its list is its own 32
/// experts: a centroid is 1/2 at two columns of the block and 1/4 or -1/4 at eight others, at most
/// two in a block, so own experts score 1/4 with the codeword and others at most 1/8. Tokens are
/// 3/4 in their block and noise; of T tokens 6 in 10 belong to block 0, none to the last two.
inline Problem exact_problem(int64_t dim, int64_t expert_dim, ExpertActivation activation) {
  constexpr int64_t kBlock = 16, kOwn = 32, kTokens = 1200, kActive = 16;
  constexpr uint64_t kSeed = 11;
  const int64_t blocks = dim / kBlock, experts = blocks * kOwn;
  Problem p;
  p.config =
      config_of({kTokens, dim, experts, kActive, expert_dim, blocks, kOwn, activation, 1.0f});
  p.tokens = kTokens;
  p.exact = true;
  Arrays<float>& a = p.arrays;
  const RandomStream random(kSeed, Purpose::test_data, 0);
  uint64_t drawn = 0;
  const auto draw = [&](int64_t below) {
    return static_cast<int64_t>(random.uniform(drawn++) * static_cast<double>(below));
  };
  a.codebook.assign(blocks * dim, 0.0f);
  for (int64_t g = 0; g < blocks; ++g) {
    for (int64_t k = 0; k < kBlock; ++k) a.codebook[g * dim + g * kBlock + k] = 0.25f;
  }
  a.centroid.assign(experts * dim, 0.0f);
  for (int64_t e = 0; e < experts; ++e) {
    float* w = &a.centroid[e * dim];
    const int64_t own = e % blocks;
    const int64_t first = draw(kBlock);
    w[own * kBlock + first] = 0.5f;
    w[own * kBlock + (first + 1 + draw(kBlock - 1)) % kBlock] = 0.5f;
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t block = (own + 1 + i % (blocks - 1)) % blocks;
      int64_t column = block * kBlock + draw(kBlock);
      while (w[column] != 0.0f) column = block * kBlock + draw(kBlock);
      w[column] = draw(2) == 0 ? 0.25f : -0.25f;
    }
  }
  const auto rounded = [](std::vector<float> x) {
    for (float& value : x) value = static_cast<float>(__nv_bfloat16(value));
    return x;
  };
  a.hidden.resize(kTokens * dim);
  for (int64_t t = 0; t < kTokens; ++t) {
    const int64_t block = draw(10) < 6 ? 0 : draw(blocks - 2);
    for (int64_t k = 0; k < dim; ++k) {
      const float noise = static_cast<float>(draw(127) - 63) / 256.0f;
      a.hidden[t * dim + k] = noise + (k / kBlock == block ? 0.75f : 0.0f);
    }
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  a.d_out = rounded(normal(kTokens * dim, kSeed, 1, 1.0));
  a.up = rounded(normal(experts * expert_dim * dim, kSeed, 2, 4 * scale));
  a.down = rounded(normal(experts * expert_dim * dim, kSeed, 3, scale));
  if (activation == ExpertActivation::swiglu) {
    a.gate_proj = rounded(normal(experts * expert_dim * dim, kSeed, 4, 4 * scale));
  }
  return p;
}

}  // namespace airmoe::oracle
