// Training steps on a device against the host's, from the same state.

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/cuda/device.hpp"
#include "comm/base/partition.hpp"
#include "comm/base/random.hpp"
#include "scheduler/train/cuda_engine.hpp"
#include "scheduler/train/host_engine.hpp"
#include "tests/scheduler/cuda/device_model.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::test {
namespace {

using scheduler::ComputeType;
using scheduler::DeviceKind;
using scheduler::Engine;
using scheduler::MicroBatch;
using scheduler::Model;
using scheduler::TrainConfig;

constexpr uint64_t kSeed = 3;

TrainConfig small_config() {
  TrainConfig c = small_model(3, 64, kSeed);
  c.exchange.exchange = scheduler::Exchange::cover;
  c.exchange.copy_budget = 1;
  c.exchange.move_homes = false;
  return c;
}

// This rank's sequences.
BlockPartition sequences(const TrainConfig& c) {
  return {c.batch, world().size()};
}

Batch mine(const TrainConfig& c, int64_t step) {
  const Batch all = walk(c.batch * c.model.context, c.model.vocab, step);
  const int64_t first = sequences(c).begin(world().rank()) * c.model.context;
  const int64_t n = sequences(c).size(world().rank()) * c.model.context;
  const auto part = [&](const std::vector<int32_t>& x) {
    return std::vector<int32_t>(x.begin() + first, x.begin() + first + n);
  };
  return {part(all.tokens), part(all.targets)};
}

MicroBatch micro_batch(const TrainConfig& c, int64_t step) {
  MicroBatch m;
  m.step = static_cast<uint32_t>(step);
  m.range = {c.batch * c.model.context, sequences(c).begin(world().rank()) * c.model.context};
  m.loss_scale = 1.0f / static_cast<float>(c.batch * c.model.context);
  return m;
}

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() : config(small_config()) { make_host(); }
  void make_host() {
    host.reset();
    host_model = std::make_unique<Model>(world(), config.model, kSeed, config.expert_path,
                                         config.sums, config.exchange);
    host = std::make_unique<scheduler::HostEngine>(world(), *host_model, config);
  }
  double step(Engine& engine, int64_t s, double* norm = nullptr) {
    const Batch b = mine(config, s);
    engine.micro_batch(b.tokens, b.targets, sequences(config).size(world().rank()),
                       micro_batch(config, s));
    const Engine::Sums part = engine.finish_gradients();
    double sums[] = {part.loss, part.squares};
    world().all_reduce(std::span<double>(sums), comm::Reduction::sum);
    const double size = std::sqrt(sums[1]);
    if (norm != nullptr) *norm = size;
    engine.update(2e-3, s, size);
    return sums[0] / static_cast<double>(config.batch * config.model.context);
  }
  // A device engine that goes on from the host's state.
  void start_device(ComputeType type) {
    config.device = DeviceKind::cuda;
    config.compute_type = type;
    device_model = std::make_unique<Model>(world(), config.model, kSeed, config.expert_path,
                                           config.sums, config.exchange);
    device = scheduler::make_cuda_engine(world(), *device_model, config);
    host->bring_to_host(Engine::Lists::current);
    for (std::size_t i = 0; i < host_model->parameters().all().size(); ++i) {
      const scheduler::Parameter& from = *host_model->parameters().all()[i];
      scheduler::Parameter& to = *device_model->parameters().all()[i];
      std::copy_n(from.value.data(), from.local_size(), to.value.data());
      std::copy_n(from.moment1.data(), from.local_size(), to.moment1.data());
      std::copy_n(from.moment2.data(), from.local_size(), to.moment2.data());
    }
    for (std::size_t i = 0; i < host_model->moe_layers().size(); ++i) {
      router::Codebook& from = host_model->moe_layers()[i]->codebook();
      router::Codebook& to = device_model->moe_layers()[i]->codebook();
      const int64_t g = config.model.codewords, d = config.model.dim;
      std::copy_n(from.codewords().data, g * d, to.codewords().data);
      std::copy_n(from.sums().data, g * d, to.sums().data);
      std::copy(from.counts().begin(), from.counts().end(), to.counts().begin());
    }
    device_model->restored();
    device->take_from_host();
  }

  TrainConfig config;
  std::unique_ptr<Model> host_model, device_model;
  std::unique_ptr<Engine> host, device;
};

TEST_F(EngineTest, StepsInF32FollowTheHost) {
  if (no_device()) GTEST_SKIP();
  for (int64_t s = 1; s <= 5; ++s) step(*host, s);
  start_device(ComputeType::f32);
  for (int64_t s = 6; s <= 9; ++s) {
    double norm = 0, device_norm = 0;
    const double a = step(*host, s, &norm);
    const double b = step(*device, s, &device_norm);
    // One flipped selection changes the loss by about 1e-6; later steps amplify it.
    EXPECT_NEAR(b, a, (s == 6 ? 1e-5 : 1e-3) * a) << "step " << s;
    EXPECT_NEAR(device_norm, norm, (s == 6 ? 1e-3 : 3e-2) * norm) << "step " << s;
  }
}

// One sequence: the others have no tokens of their own. With one codeword, whose tokens go to one
// rank, they compute nothing for others either.
TEST_F(EngineTest, RanksWithoutTokensFollowTheHost) {
  if (no_device()) GTEST_SKIP();
  config.batch = 1;
  for (const int64_t codewords : {16, 1}) {
    config.model.codewords = codewords;
    config.device = DeviceKind::cpu;
    make_host();
    for (int64_t s = 1; s <= 5; ++s) step(*host, s);
    start_device(ComputeType::f32);
    for (int64_t s = 6; s <= 8; ++s) {
      const double a = step(*host, s);
      EXPECT_NEAR(step(*device, s), a, (s == 6 ? 1e-4 : 3e-3) * a) << "step " << s;
    }
    MicroBatch m = micro_batch(config, 9);
    m.training = false;
    const Batch b = mine(config, 9);
    const int64_t count = sequences(config).size(world().rank());
    const double expected = host->forward_loss(b.tokens, b.targets, count, m);
    EXPECT_NEAR(device->forward_loss(b.tokens, b.targets, count, m), expected, 3e-3 * expected);
    scheduler::RoutingRecord record;
    device->capture(0, record);
    EXPECT_EQ(record.tokens, count * config.model.context);
    device.reset();
  }
}

TEST_F(EngineTest, UpdatedParametersInF32AreTheHosts) {
  if (no_device()) GTEST_SKIP();
  for (int64_t s = 1; s <= 5; ++s) step(*host, s);
  start_device(ComputeType::f32);
  step(*host, 6);
  step(*device, 6);
  device->bring_to_host(Engine::Lists::evaluation);
  for (std::size_t i = 0; i < host_model->parameters().all().size(); ++i) {
    const scheduler::Parameter& a = *host_model->parameters().all()[i];
    const scheduler::Parameter& b = *device_model->parameters().all()[i];
    double difference = 0, size = 0;
    for (int64_t j = 0; j < a.local_size(); ++j) {
      // Moments are linear in the gradient; values are not (Adam divides small by small).
      difference += std::pow(static_cast<double>(a.moment1[j]) - b.moment1[j], 2);
      size += std::pow(static_cast<double>(a.moment1[j]), 2);
    }
    EXPECT_LT(std::sqrt(difference), 1e-3 * std::sqrt(size) + 1e-12) << a.name;
  }
}

TEST_F(EngineTest, Bf16StaysWithinItsRounding) {
  if (no_device()) GTEST_SKIP();
  for (int64_t s = 1; s <= 5; ++s) step(*host, s);
  start_device(ComputeType::bf16);
  for (int64_t s = 6; s <= 9; ++s) {
    const double a = step(*host, s);
    EXPECT_NEAR(step(*device, s), a, 2e-2 * a) << "step " << s;
  }
}

TEST_F(EngineTest, EvaluationMatchesTheHost) {
  if (no_device()) GTEST_SKIP();
  for (int64_t s = 1; s <= 5; ++s) step(*host, s);
  start_device(ComputeType::f32);
  const Batch b = mine(config, 100);
  const int64_t count = sequences(config).size(world().rank());
  MicroBatch m = micro_batch(config, 100);
  m.training = false;
  const double expected = host->forward_loss(b.tokens, b.targets, count, m);
  const double actual = device->forward_loss(b.tokens, b.targets, count, m);
  EXPECT_NEAR(actual, expected, 1e-5 * expected);

  scheduler::RoutingRecord x, y;
  host->capture(0, x);
  device->capture(0, y);
  ASSERT_EQ(x.tokens, y.tokens);
  int64_t same = 0, codewords = 0;
  const int64_t k = config.model.active;
  for (int64_t t = 0; t < x.tokens; ++t) {
    codewords += x.codeword[t] == y.codeword[t];
    same +=
        std::equal(x.expert.data() + t * k, x.expert.data() + (t + 1) * k, y.expert.data() + t * k);
  }
  // The hidden states differ in their last bits, so a few near ties may flip.
  EXPECT_GE(codewords, x.tokens * 995 / 1000);
  EXPECT_GE(same, x.tokens * 98 / 100);
}

TEST_F(EngineTest, TrainsFromTheStartAndCountsUsage) {
  if (no_device()) GTEST_SKIP();
  config.device = DeviceKind::cuda;
  config.compute_type = ComputeType::bf16;
  device = scheduler::make_cuda_engine(world(), *host_model, config);
  double first = 0, last = 0;
  for (int64_t s = 1; s <= 60; ++s) {
    const double loss = step(*device, s);
    if (s == 1) first = loss;
    last = loss;
  }
  EXPECT_LT(last, 0.8 * first);
  device->collect_usage();
  router::ExpertUsage& usage = host_model->moe_layers()[0]->usage();
  int64_t total = 0;
  for (const int64_t n : usage.window()) total += n;
  total = world().all_reduce_value(total, comm::Reduction::sum);
  EXPECT_EQ(total, 60 * config.batch * config.model.context * config.model.active);
}

TEST_F(EngineTest, RepeatsBitByBitAndWithoutGraphs) {
  if (no_device()) GTEST_SKIP();
  config.device = DeviceKind::cuda;
  std::vector<double> losses[3];
  for (auto& l : losses) {
    config.cuda_graphs = &l != &losses[2];
    Model model(world(), config.model, kSeed, config.expert_path, config.sums, config.exchange);
    const auto engine = scheduler::make_cuda_engine(world(), model, config);
    for (int64_t s = 1; s <= 10; ++s) l.push_back(step(*engine, s));
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

// Two micro-batches a step, and MoE layers at both ends, so that messages of one layer meet the
// compute of others.
TEST_F(EngineTest, OverlappedMessagesChangeNoBit) {
  if (no_device()) GTEST_SKIP();
  config.device = DeviceKind::cuda;
  config.model.layers = 5;
  config.model.moe_layers = {0, 2, 4};
  std::vector<double> losses[2], norms[2];
  for (const int64_t chunks : {1, 4}) {
    config.exchange.overlap_chunks = chunks;
    Model model(world(), config.model, kSeed, config.expert_path, config.sums, config.exchange);
    const auto engine = scheduler::make_cuda_engine(world(), model, config);
    for (int64_t s = 1; s <= 12; ++s) {
      for (uint32_t index = 0; index < 2; ++index) {
        const Batch b = mine(config, 2 * s + index);
        MicroBatch m = micro_batch(config, s);
        m.index = index;
        m.count = 2;
        m.loss_scale /= 2;
        engine->micro_batch(b.tokens, b.targets, sequences(config).size(world().rank()), m);
      }
      const Engine::Sums part = engine->finish_gradients();
      double sums[] = {part.loss, part.squares};
      world().all_reduce(std::span<double>(sums), comm::Reduction::sum);
      losses[chunks > 1].push_back(sums[0]);
      norms[chunks > 1].push_back(sums[1]);
      engine->update(2e-3, s, std::sqrt(sums[1]));
      if (s == 6) engine->bring_to_host(Engine::Lists::evaluation);
      if (s == 9) engine->take_from_host();
    }
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(norms[0], norms[1]);
}

// Over the host's communicator, which counts itself, there is nothing to add.
TEST_F(EngineTest, CountsWhatTheDeviceSends) {
  if (no_device()) GTEST_SKIP();
  config.device = DeviceKind::cuda;
  const int64_t size = world().size();
  for (const int64_t chunks : {1, 4}) {
    config.exchange.overlap_chunks = chunks;
    Model model(world(), config.model, kSeed, config.expert_path, config.sums, config.exchange);
    const auto engine = scheduler::make_cuda_engine(world(), model, config);
    const auto phases = {"dispatch", "combine", "backward_dispatch", "backward_combine"};
    const int64_t copies = engine->bytes_sent("copies");
    step(*engine, 1);
    const bool nccl = engine->description().find("nccl") != std::string::npos;
    // Unit centroids, up and down rows in bf16, after the update; their gradients in fp32.
    const int64_t rows = 3 * config.model.experts / size * config.model.dim * (size - 1);
    EXPECT_EQ(engine->bytes_sent("copies") - copies, nccl ? 2 * rows : 0);
    EXPECT_EQ(engine->bytes_sent("copy_gradients"), nccl ? 4 * rows : 0);
    for (const char* phase : phases) {
      const int64_t sent =
          world().all_reduce_value(engine->bytes_sent(phase), comm::Reduction::sum);
      EXPECT_EQ(sent > 0, nccl) << phase;
    }
  }
}

}  // namespace
}  // namespace airmoe::test
