// Presets, validation messages, and how parameters are laid out and initialised.

#include "scheduler/model_config.hpp"

#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler {
namespace {

std::string message(const std::function<void(ModelConfig&)>& change) {
  ModelConfig config = preset("tiny");
  change(config);
  try {
    config.validate();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

TEST(ModelConfig, PresetsAreValidAndHaveTheMiddleLayerMoe) {
  for (const char* name : {"tiny", "small", "medium", "large"}) {
    const ModelConfig c = preset(name);
    EXPECT_NO_THROW(c.validate()) << name;
    EXPECT_EQ(c.moe_layers, std::vector<int64_t>{c.layers / 2});
    EXPECT_TRUE(c.is_moe_layer(c.layers / 2));
    EXPECT_FALSE(c.is_moe_layer(0));
  }
  const ModelConfig large = preset("large");
  EXPECT_EQ(large.layers, 24);
  EXPECT_EQ(large.dim, 768);
  EXPECT_EQ(large.ffn_dim, 2048);
  EXPECT_EQ(large.heads, 12);
  EXPECT_EQ(large.kv_heads, 4);
  EXPECT_EQ(large.experts, 65536);
  EXPECT_EQ(large.active, 512);
  EXPECT_EQ(large.shortlist, 2048);
  EXPECT_EQ(large.codewords, 512);
  EXPECT_THROW(preset("huge"), Error);
}

TEST(ModelConfig, MessagesNameOptionValueAndRemedy) {
  EXPECT_EQ(message([](auto& c) { c.active = 512; }),
            "--active 512 is larger than --shortlist 256: choose K <= M");
  EXPECT_EQ(message([](auto& c) { c.experts = 128; }),
            "--shortlist 256 is larger than --experts 128: choose M <= E");
  EXPECT_EQ(message([](auto& c) { c.dim = 130; }),
            "--dim 130 is not a multiple of --heads 4: choose --dim 132");
  EXPECT_EQ(message([](auto& c) { c.kv_heads = 3; }),
            "--heads 4 is not a multiple of --kv-heads 3: choose --heads 6");
  EXPECT_NE(message([](auto& c) { c.dim = 12; }).find("odd width 3"), std::string::npos);
  EXPECT_EQ(message([](auto& c) { c.layers = 0; }), "--layers 0 is not positive: choose 1 or more");
  EXPECT_EQ(message([](auto& c) { c.moe_layers = {4}; }),
            "--moe-layers 4 is outside --layers 4: choose from 0 to 3");
  EXPECT_NE(message([](auto& c) { c.moe_layers = {1, 1}; }).find("twice"), std::string::npos);
  EXPECT_NE(message([](auto& c) { c.moe_layers = {2, 1}; }).find("ascending"), std::string::npos);
  EXPECT_EQ(message([](auto& c) { c.codebook_decay = 1.0f; }),
            "--codebook-decay 1 is outside [0, 1): choose for example 0.95");
  EXPECT_NE(message([](auto& c) { c.jitter = std::nanf(""); }).find("--jitter nan"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.balance_weight = -1; }).find("--balance-weight -1"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) {
              c.rope_base = std::numeric_limits<float>::infinity();
            }).find("--rope-base inf"),
            std::string::npos);
  EXPECT_NE(message([](auto& c) { c.experts = int64_t{1} << 31; }).find("at most 2147483647"),
            std::string::npos);
}

TEST(ModelConfig, ADenseModelNeedsNoValidMoeOptions) {
  EXPECT_EQ(message([](auto& c) {
              c.moe_layers = {};
              c.active = 0;
            }),
            "no error");
}

TEST(ModelConfig, ActivationsHaveNames) {
  for (const char* name : {"gelu", "silu", "relu", "swiglu"}) {
    EXPECT_STREQ(name_of(parse_expert_activation(name)), name);
  }
  EXPECT_THROW(parse_expert_activation("tanh"), Error);
}

TEST(Parameter, ValuesDoNotDependOnTheRankCount) {
  const std::vector<int64_t> shape = {10, 3, 2};
  ParameterSet whole;
  Parameter& all = whole.add_by_expert("/a", shape, {10, 1}, 0, true);
  initialise_normal(all, 3, 0.5f);
  int64_t rows = 0;
  for (int64_t rank = 0; rank < 4; ++rank) {
    ParameterSet part;
    Parameter& p = part.add_by_expert("/a", shape, {10, 4}, rank, true);
    initialise_normal(p, 3, 0.5f);
    EXPECT_EQ(p.row_begin, rows);
    rows += p.row_count;
    for (int64_t i = 0; i < p.local_size(); ++i) {
      ASSERT_EQ(p.value[i], all.value[p.row_begin * 6 + i]);
    }
  }
  EXPECT_EQ(rows, 10);
}

TEST(Parameter, StartsWithZeroGradientAndMoments) {
  ParameterSet set;
  Parameter& p = set.add_replicated("/w", {3, 4}, true);
  EXPECT_EQ(p.local_size(), 12);
  EXPECT_EQ(p.values().rows, 3);
  EXPECT_EQ(p.values().cols, 4);
  for (const Buffer<float>* zero : {&p.gradient, &p.moment1, &p.moment2}) {
    for (const float v : *zero) EXPECT_EQ(v, 0.0f);
  }
  p.gradient.fill(2.0f);
  set.zero_gradients();
  EXPECT_EQ(p.gradient[11], 0.0f);
}

// Gradients of experts come from the layer that made them; what is summed over ranks leaves them
// alone. Rows of copies, behind the owned ones, belong to other ranks' sums.
TEST(Parameter, SumsOfGradientsBecomeGradientsOnce) {
  ParameterSet set;
  Parameter& trunk = set.add_replicated("/trunk", {4}, true);
  Parameter& experts = set.add_by_expert("/experts", {10, 2, 3}, {10, 3}, 1, true);
  EXPECT_EQ(experts.gradient_sum.size(), 3 * 6);
  for (const double v : experts.gradient_sum) EXPECT_EQ(v, 0.0);
  experts.gradient_sum = Buffer<double>(5 * 6, 7.25);
  EXPECT_EQ(experts.gradient_sums().rows, 5);
  EXPECT_EQ(experts.gradient_sums().cols, 6);
  trunk.gradient_sum.fill(0.5);
  set.unfold_gradients();
  EXPECT_EQ(trunk.gradient[3], 0.5f);
  EXPECT_EQ(trunk.gradient_sum[3], 0.0);
  EXPECT_EQ(experts.gradient[17], 0.0f);
  EXPECT_EQ(experts.gradient_sum[17], 7.25);
  experts.unfold_gradient();
  EXPECT_EQ(experts.gradient[17], 7.25f);
  EXPECT_EQ(experts.gradient_sum[17], 0.0);
  EXPECT_EQ(experts.gradient_sum[18], 7.25);
  set.zero_gradients();
  EXPECT_EQ(experts.gradient[17], 0.0f);
  EXPECT_EQ(experts.gradient_sum[18], 0.0);
}

TEST(Parameter, NamesAndSeedsGiveDifferentValues) {
  ParameterSet set;
  Parameter& a = set.add_replicated("/a", {100}, true);
  Parameter& b = set.add_replicated("/b", {100}, true);
  initialise_normal(a, 1, 1.0f);
  initialise_normal(b, 1, 1.0f);
  const float first = a.value[0];
  EXPECT_NE(first, b.value[0]);
  initialise_normal(a, 2, 1.0f);
  EXPECT_NE(first, a.value[0]);
  EXPECT_THROW(set.add_replicated("/a", {1}, true), Error);
  EXPECT_THROW(set.add_by_expert("/c", {9, 2}, {10, 2}, 0, true), Error);
}

}  // namespace
}  // namespace airmoe::scheduler
