// The whole trunk against the double-precision reference, and what it promises about sequences.

#include <gtest/gtest.h>

#include "comm/base/random.hpp"
#include "scheduler/trunk/trunk.hpp"
#include "tests/scheduler/toy_slot.hpp"
#include "tests/scheduler/trunk_reference.hpp"

namespace airmoe::scheduler {
namespace {

ModelConfig test_config() {
  ModelConfig c;
  c.layers = 2;
  c.dim = 16;
  c.heads = 4;
  c.kv_heads = 2;
  c.ffn_dim = 20;
  c.context = 70;  // more than one block of query rows
  c.vocab = 31;
  c.rope_base = 100.0f;
  c.moe_layers = {1};
  return c;
}

struct Model {
  explicit Model(const ModelConfig& config)
      : c(config), slot(config.dim), trunk(config, parameters, 1, slots()) {
    // Far from the small initial values, so that every nonlinearity counts.
    uint32_t index = 0;
    for (auto& p : parameters.all()) {
      const RandomStream stream(2, Purpose::test_data, ++index);
      stream.fill_normal(p->value.data(), p->local_size(), 0, p->shape.size() == 1 ? 0.5f : 0.4f);
    }
    const RandomStream stream(3, Purpose::test_data);
    for (int64_t i = 0; i < 3 * c.context; ++i) {
      const auto words = stream.block(static_cast<uint32_t>(i));
      tokens.push_back(static_cast<int32_t>(words[0] % static_cast<uint32_t>(c.vocab)));
      targets.push_back(static_cast<int32_t>(words[1] % static_cast<uint32_t>(c.vocab)));
    }
  }

  std::vector<MoeSlot*> slots() {
    std::vector<MoeSlot*> all;
    for (int64_t i = 0; i < c.layers; ++i) all.push_back(c.is_moe_layer(i) ? &slot : nullptr);
    return all;
  }
  std::span<const int32_t> part(const std::vector<int32_t>& x, int64_t first, int64_t count) const {
    return std::span(x).subspan(static_cast<std::size_t>(first * c.context),
                                static_cast<std::size_t>(count * c.context));
  }
  double loss(int64_t first, int64_t count) {
    return trunk.forward_loss(part(tokens, first, count), part(targets, first, count), count);
  }
  double train(int64_t first, int64_t count, float scale) {
    return trunk.forward_backward(part(tokens, first, count), part(targets, first, count), count,
                                  scale);
  }
  double reference_loss(const reference::Weights& weights, int64_t sequences) {
    double sum = 0.0;
    for (int64_t s = 0; s < sequences; ++s) {
      sum += reference::sequence_loss(c, weights, tokens.data() + s * c.context,
                                      targets.data() + s * c.context,
                                      [this](const auto& h) { return slot.apply(h); });
    }
    return sum;
  }
  std::vector<std::vector<float>> gradients() {
    parameters.unfold_gradients();
    std::vector<std::vector<float>> all;
    for (const auto& p : parameters.all()) all.emplace_back(p->gradient.begin(), p->gradient.end());
    return all;
  }

  ModelConfig c;
  ToySlot slot;
  ParameterSet parameters;
  Trunk trunk;
  std::vector<int32_t> tokens, targets;
};

TEST(TrunkModel, LossEqualsTheReference) {
  Model model(test_config());
  const auto weights = reference::copy_weights(model.parameters);
  const double expected = model.reference_loss(weights, 3);
  EXPECT_NEAR(model.loss(0, 3), expected, 2e-6 * expected);
  EXPECT_NEAR(model.train(0, 3, 1.0f), expected, 2e-6 * expected);
}

// Along random directions every element counts; single elements would show a misplaced one.
TEST(TrunkModel, GradientsEqualFiniteDifferencesOfTheReference) {
  Model model(test_config());
  const int64_t sequences = 2;
  const float loss_scale = 0.25f;
  model.train(0, sequences, loss_scale);
  model.parameters.unfold_gradients();
  auto weights = reference::copy_weights(model.parameters);
  uint32_t checked = 0;
  for (const auto& p : model.parameters.all()) {
    auto& w = weights.at(p->name);
    const auto original = w;
    const RandomStream stream(4, Purpose::test_data, ++checked);
    double norm = 0.0;
    for (const float g : p->gradient) norm += static_cast<double>(g) * static_cast<double>(g);
    ASSERT_GT(norm, 0.0) << p->name;
    for (uint32_t trial = 0; trial < 6; ++trial) {
      std::vector<double> direction(w.size(), 0.0);
      if (trial < 2) {
        for (std::size_t i = 0; i < w.size(); ++i) {
          direction[i] = stream.uniform(trial * w.size() + i) < 0.5 ? -1.0 : 1.0;
        }
      } else {
        direction[stream.block(trial)[0] % w.size()] = 1.0;
      }
      double length = 0.0, slope = 0.0;
      for (std::size_t i = 0; i < w.size(); ++i) {
        length += direction[i] * direction[i];
        slope += direction[i] * static_cast<double>(p->gradient[static_cast<int64_t>(i)]);
      }
      const double step = 1e-5 / std::sqrt(length);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] = original[i] + step * direction[i];
      const double above = model.reference_loss(weights, sequences);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] = original[i] - step * direction[i];
      const double below = model.reference_loss(weights, sequences);
      w = original;
      const double expected = static_cast<double>(loss_scale) * (above - below) / (2.0 * step);
      // fp32 gradients: about 1e-6 of the gradient's norm for every unit of direction.
      EXPECT_NEAR(slope, expected, 1e-5 * std::sqrt(norm * length)) << p->name << " " << trial;
    }
  }
  EXPECT_EQ(checked, 2u + 2u * 6u + 3u + 2u);
}

TEST(TrunkModel, LossIsTheSameBitsHoweverSequencesAreSpread) {
  Model model(test_config());
  const double a = model.loss(0, 1), b = model.loss(1, 1), c = model.loss(2, 1);
  EXPECT_NE(a, b);
  EXPECT_EQ(model.loss(0, 3), a + b + c);
  EXPECT_EQ(model.loss(1, 2), b + c);
  EXPECT_EQ(model.train(1, 2, 1.0f), b + c);
}

TEST(TrunkModel, HiddenStatesAreTheSameBitsHoweverSequencesAreSpread) {
  Model model(test_config());
  model.loss(0, 3);
  const auto together = model.slot.seen;
  std::vector<float> apart;
  for (int64_t s = 0; s < 3; ++s) {
    model.loss(s, 1);
    apart.insert(apart.end(), model.slot.seen.begin(), model.slot.seen.end());
  }
  EXPECT_EQ(together, apart);
}

TEST(TrunkModel, GradientsAddUpOverSequencesInOrder) {
  Model model(test_config());
  model.train(0, 2, 0.5f);
  const auto together = model.gradients();
  model.parameters.zero_gradients();
  model.train(0, 1, 0.5f);
  model.train(1, 1, 0.5f);
  const auto apart = model.gradients();
  ASSERT_EQ(model.parameters.all()[0]->name, "/embedding");
  for (std::size_t p = 1; p < apart.size(); ++p) EXPECT_EQ(together[p], apart[p]) << p;
  // The embedding gets a second share from its use as input, in another order.
  for (std::size_t i = 0; i < apart[0].size(); ++i) {
    EXPECT_NEAR(together[0][i], apart[0][i], 1e-4);
  }
}

TEST(TrunkModel, NothingSeesLaterTokens) {
  Model model(test_config());
  model.loss(0, 1);
  const auto before = model.slot.seen;
  for (const int64_t at : {69, 64, 63, 1}) {
    const int32_t token = model.tokens[at];
    model.tokens[at] = (token + 1) % 31;
    model.loss(0, 1);
    model.tokens[at] = token;
    const int64_t d = model.c.dim;
    for (int64_t i = 0; i < at * d; ++i) ASSERT_EQ(model.slot.seen[i], before[i]) << at;
    for (int64_t t = at; t < model.c.context; ++t) {
      bool changed = false;
      for (int64_t i = t * d; i < (t + 1) * d; ++i) changed |= model.slot.seen[i] != before[i];
      EXPECT_TRUE(changed) << "token " << t << " does not see token " << at;
    }
  }
}

TEST(TrunkModel, NoSequencesStillCallEverySlot) {
  Model model(test_config());
  EXPECT_EQ(model.train(0, 0, 1.0f), 0.0);
  EXPECT_EQ(model.slot.forwards, 1);
  EXPECT_EQ(model.slot.backwards, 1);
  EXPECT_EQ(model.loss(0, 0), 0.0);
  EXPECT_EQ(model.slot.forwards, 2);
  EXPECT_EQ(model.slot.backwards, 1);
  for (const auto& gradient : model.gradients()) {
    for (const float g : gradient) ASSERT_EQ(g, 0.0f);
  }
}

TEST(TrunkModel, InitialValuesAreSmallAndKeyedByName) {
  ModelConfig c = preset("tiny");
  ToySlot slot(c.dim);
  std::vector<MoeSlot*> slots(static_cast<std::size_t>(c.layers), nullptr);
  slots[2] = &slot;
  ParameterSet parameters;
  Trunk trunk(c, parameters, 7, slots);
  std::map<std::string, const Parameter*> by_name;
  for (const auto& p : parameters.all()) by_name[p->name] = p.get();
  const auto rms = [&](const std::string& name) {
    double sum = 0.0;
    for (const float v : by_name.at(name)->value) sum += static_cast<double>(v * v);
    return std::sqrt(sum / static_cast<double>(by_name.at(name)->local_size()));
  };
  EXPECT_NEAR(rms("/embedding"), 0.02, 0.0005);
  EXPECT_NEAR(rms("/layers/00/attention/wq"), 0.02, 0.0005);
  EXPECT_NEAR(rms("/layers/00/attention/wo"), 0.02 / std::sqrt(8.0), 0.0002);
  EXPECT_NEAR(rms("/layers/03/ffn/down"), 0.02 / std::sqrt(8.0), 0.0002);
  EXPECT_EQ(rms("/final_norm"), 1.0);
  EXPECT_NE(by_name["/layers/00/attention/wq"]->value[0],
            by_name["/layers/01/attention/wq"]->value[0]);
  EXPECT_FALSE(by_name["/layers/02/moe_norm/gain"]->decay);
  EXPECT_TRUE(by_name["/layers/00/attention/wq"]->decay);
  EXPECT_EQ(by_name.count("/layers/02/ffn/gate"), 0u);
  // Untrained, the loss is close to that of guessing among all tokens.
  std::vector<int32_t> tokens(static_cast<std::size_t>(c.context), 65);
  const double loss = trunk.forward_loss(tokens, tokens, 1) / static_cast<double>(c.context);
  EXPECT_NEAR(loss, std::log(256.0), 0.4);
}

}  // namespace
}  // namespace airmoe::scheduler
