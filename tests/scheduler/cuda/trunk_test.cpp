// The trunk on a device against the host's: loss and every gradient.

#include "scheduler/cuda/trunk.hpp"

#include <gtest/gtest.h>

#include "scheduler/cuda/adamw.hpp"
#include "scheduler/trunk/trunk.hpp"
#include "tests/scheduler/cuda/device_arrays.hpp"
#include "tests/scheduler/toy_slot.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using test::cosine;
using test::from_device;
using test::relative_distance;
using test::Stream;
using test::to_device;
using test::uniform_ids;

/// ToySlot on the host behind a slot of the device; waits in every call.
template <class T>
class HostSlot : public DeviceMoeSlot<T> {
 public:
  explicit HostSlot(int64_t dim) : slot_(dim), dim_(dim) {}
  void forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) override {
    tokens_ = tokens;
    seen_ = download(hidden, stream);
    std::vector<float> result(seen_.size());
    slot_.forward(ConstMatrix(seen_.data(), tokens, dim_), Matrix(result.data(), tokens, dim_));
    upload(out, result, stream);
  }
  void backward(const T* d_out, float* d_hidden, cudaStream_t stream) override {
    const std::vector<float> gradient = download(d_out, stream);
    std::vector<float> result(gradient.size());
    slot_.backward(ConstMatrix(gradient.data(), tokens_, dim_),
                   Matrix(result.data(), tokens_, dim_));
    upload(d_hidden, result, stream);
  }
  const std::vector<float>& seen() const { return seen_; }
  const ToySlot& toy() const { return slot_; }

 private:
  std::vector<float> download(const T* from, cudaStream_t stream) {
    std::vector<T> raw(static_cast<std::size_t>(tokens_ * dim_));
    if (raw.empty()) return {};
    AIRMOE_CUDA(
        cudaMemcpyAsync(raw.data(), from, raw.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
    AIRMOE_CUDA(cudaStreamSynchronize(stream));
    return {raw.begin(), raw.end()};
  }
  static void upload(float* to, const std::vector<float>& from, cudaStream_t stream) {
    if (from.empty()) return;
    AIRMOE_CUDA(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(float),
                                cudaMemcpyHostToDevice, stream));
    AIRMOE_CUDA(cudaStreamSynchronize(stream));
  }

  ToySlot slot_;
  int64_t dim_, tokens_ = 0;
  std::vector<float> seen_;
};

ModelConfig small_config(std::vector<int64_t> moe_layers) {
  ModelConfig c;
  c.layers = 3;
  c.dim = 64;
  c.heads = 4;
  c.kv_heads = 2;
  c.ffn_dim = 104;
  c.context = 70;
  c.vocab = 101;
  c.rope_base = 100.0f;
  c.moe_layers = std::move(moe_layers);
  return c;
}

ModelConfig tiny_preset() {
  ModelConfig c = preset("tiny");
  c.moe_layers.clear();
  return c;
}

/// The same model twice: on the host with its own gradients, and on the device.
template <class T>
struct Models {
  Models(const ModelConfig& config, int64_t sequences, float stddev)
      : c(config), host_slot(c.dim), device_slot(c.dim), trunk(c, parameters, 1, host_slots()) {
    uint32_t which = 0;
    for (auto& p : parameters.all()) {
      // Far from the small initial values, so that every nonlinearity counts.
      const RandomStream random(2, Purpose::test_data, ++which);
      const bool gain = p->shape.size() == 1;
      random.fill_normal(p->value.data(), p->local_size(), 0, gain ? 0.3f : stddev);
      if (gain && !p->name.ends_with("bias")) {
        for (float& x : p->value) x += 1.0f;
      }
    }
    tokens = uniform_ids(sequences * c.context, c.vocab, 3);
    targets = uniform_ids(sequences * c.context, c.vocab, 4);
    device_tokens = to_device<int32_t>(tokens);
    device_targets = to_device<int32_t>(targets);
    loss = to_device<double>(std::vector<double>{0});
    on_device = std::make_unique<DeviceParameters<T>>(parameters);
    on_device->upload(stream);
    device_trunk = std::make_unique<DeviceTrunk<T>>(c, parameters, *on_device, device_slots());
  }
  std::vector<MoeSlot*> host_slots() {
    std::vector<MoeSlot*> all;
    for (int64_t i = 0; i < c.layers; ++i) all.push_back(c.is_moe_layer(i) ? &host_slot : nullptr);
    return all;
  }
  std::vector<DeviceMoeSlot<T>*> device_slots() {
    std::vector<DeviceMoeSlot<T>*> all;
    for (int64_t i = 0; i < c.layers; ++i) {
      all.push_back(c.is_moe_layer(i) ? &device_slot : nullptr);
    }
    return all;
  }
  double run(int64_t sequences, float scale) {
    loss.zero(stream);
    device_trunk->forward_backward(device_tokens.data(), device_targets.data(), sequences, scale,
                                   loss.data(), stream);
    return from_device<double>(loss, stream)[0];
  }
  std::vector<float> gradient(const Parameter& p) {
    std::vector<float> out(static_cast<std::size_t>(p.local_size()));
    AIRMOE_CUDA(cudaMemcpyAsync(out.data(), on_device->gradient(p), out.size() * sizeof(float),
                                cudaMemcpyDeviceToHost, stream));
    stream.synchronize();
    return out;
  }
  std::vector<float> all_gradients() {
    std::vector<float> all;
    for (auto& p : parameters.all()) {
      const auto one = gradient(*p);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }

  Stream stream;
  ModelConfig c;
  ToySlot host_slot;
  HostSlot<T> device_slot;
  ParameterSet parameters;
  Trunk trunk;
  std::vector<int32_t> tokens, targets;
  DeviceBuffer<int32_t> device_tokens, device_targets;
  DeviceBuffer<double> loss;
  std::unique_ptr<DeviceParameters<T>> on_device;
  std::unique_ptr<DeviceTrunk<T>> device_trunk;
};

template <class T>
void expect_like_host(const ModelConfig& config, int64_t sequences, float stddev) {
  Models<T> models(config, sequences, stddev);
  const float scale = 1.0f / static_cast<float>(sequences * config.context);
  const double expected =
      models.trunk.forward_backward(models.tokens, models.targets, sequences, scale);
  models.parameters.unfold_gradients();
  const double found = models.run(sequences, scale);
  const bool exact = std::is_same_v<T, float>;
  EXPECT_NEAR(found, expected, (exact ? 1e-5 : 2e-2) * expected);
  for (auto& p : models.parameters.all()) {
    const auto gradient = models.gradient(*p);
    const std::span<const float> host(p->gradient.data(), gradient.size());
    if (exact) {
      EXPECT_LT(relative_distance(gradient, host), 1e-4) << p->name;
    } else {
      EXPECT_GT(cosine(gradient, host), 0.99) << p->name;
    }
  }
  models.loss.zero(models.stream);
  models.device_trunk->forward_loss(models.device_tokens.data(), models.device_targets.data(),
                                    sequences, models.loss.data(), models.stream);
  EXPECT_EQ(from_device<double>(models.loss, models.stream)[0], found);
}

TEST(DeviceTrunk, EqualsTheHostInFp32) {
  expect_like_host<float>(small_config({}), 2, 0.15f);
  expect_like_host<float>(tiny_preset(), 2, 0.08f);
}

TEST(DeviceTrunk, EqualsTheHostInFp32WithSlots) {
  expect_like_host<float>(small_config({1}), 2, 0.15f);
  expect_like_host<float>(small_config({0, 2}), 3, 0.15f);
}

TEST(DeviceTrunk, IsCloseToTheHostInBf16) {
  expect_like_host<__nv_bfloat16>(small_config({1}), 2, 0.15f);
  expect_like_host<__nv_bfloat16>(tiny_preset(), 2, 0.08f);
}

TEST(DeviceTrunk, ShowsTheSlotItsHidden) {
  Models<float> models(small_config({1}), 2, 0.15f);
  models.run(2, 1.0f);
  std::vector<float> hidden(static_cast<std::size_t>(2 * models.c.context * models.c.dim));
  AIRMOE_CUDA(cudaMemcpy(hidden.data(), models.device_trunk->moe_hidden(1),
                         hidden.size() * sizeof(float), cudaMemcpyDeviceToHost));
  EXPECT_EQ(hidden, models.device_slot.seen());
}

TEST(DeviceTrunk, AddsGradientsAndRepeatsItsBits) {
  Models<__nv_bfloat16> models(small_config({1}), 3, 0.15f);
  const double loss = models.run(3, 0.5f);
  const auto once = models.all_gradients();
  models.on_device->zero_gradients(models.stream);
  EXPECT_EQ(models.run(3, 0.5f), loss);
  EXPECT_EQ(models.all_gradients(), once);
  models.run(3, 0.5f);
  const auto twice = models.all_gradients();
  std::vector<float> doubled = once;
  for (float& x : doubled) x *= 2;
  EXPECT_LT(relative_distance(twice, doubled), 1e-6);
}

TEST(DeviceTrunk, TakesNoTokens) {
  Models<float> models(small_config({1}), 2, 0.15f);
  EXPECT_EQ(models.run(0, 1.0f), 0.0);
  EXPECT_EQ(models.device_slot.toy().forwards, 1);
  EXPECT_EQ(models.device_slot.toy().backwards, 1);
  const auto gradients = models.all_gradients();
  EXPECT_EQ(gradients, std::vector<float>(gradients.size()));
}

TEST(DeviceTrunk, TrainsInAGraph) {
  Models<__nv_bfloat16> models(small_config({}), 4, 0.05f);
  auto& m = models;
  const float scale = 1.0f / static_cast<float>(4 * m.c.context);
  const auto update = [&](int64_t step) {
    adamw_step(*m.on_device, {}, 3e-3f, step, nullptr, nullptr, m.stream);
  };
  const double first = m.run(4, scale);
  update(1);
  cudaGraph_t graph = nullptr;
  AIRMOE_CUDA(cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal));
  m.loss.zero(m.stream);
  m.device_trunk->forward_backward(m.device_tokens.data(), m.device_targets.data(), 4, scale,
                                   m.loss.data(), m.stream);
  AIRMOE_CUDA(cudaStreamEndCapture(m.stream, &graph));
  cudaGraphExec_t step = nullptr;
  AIRMOE_CUDA(cudaGraphInstantiate(&step, graph, 0));
  const int64_t held = airmoe::cuda::device_bytes();
  for (int i = 0; i < 60; ++i) {
    AIRMOE_CUDA(cudaGraphLaunch(step, m.stream));
    update(i + 2);
  }
  AIRMOE_CUDA(cudaGraphLaunch(step, m.stream));
  const double last = from_device<double>(m.loss, m.stream)[0];
  m.on_device->zero_gradients(m.stream);
  EXPECT_EQ(m.run(4, scale), last);  // the same bits without a graph
  EXPECT_LT(last, 0.5 * first);      // it learns its few tokens by heart
  EXPECT_EQ(airmoe::cuda::device_bytes(), held);
  AIRMOE_CUDA(cudaGraphExecDestroy(step));
  AIRMOE_CUDA(cudaGraphDestroy(graph));
}

TEST(DeviceTrunk, NamesTheOptionThatADeviceCannotTake) {
  ModelConfig c = small_config({});
  c.ffn_dim = 100;
  try {
    Models<float> models(c, 1, 0.1f);
    FAIL() << "accepted --ffn-dim 100";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--ffn-dim 100"), std::string::npos);
  }
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
