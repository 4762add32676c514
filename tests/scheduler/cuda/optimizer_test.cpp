// AdamW, gradient norm and clipping on a device against the host.

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "scheduler/cuda/adamw.hpp"
#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/optim/gradient_norm.hpp"
#include "tests/scheduler/cuda/device_arrays.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using test::from_device;
using test::normal;
using test::rounded;
using test::Stream;
using test::to_device;

// Matrices and gains, two kinds of sharding, one longer than a block's elements.
struct Parameters {
  Parameters() {
    all.add_replicated("/a", {40, 8}, true);
    all.add_replicated("/gain", {24}, false);
    all.add_by_expert("/experts", {1100, 16}, BlockPartition{1100, 1}, 0, true);
    all.add_replicated("/b", {8, 3}, true);
    uint32_t which = 0;
    for (auto& p : all.all()) {
      const int64_t size = p->local_size();
      fill(p->value, normal(size, 1.0f, ++which));
      fill(p->gradient, normal(size, 0.1f, ++which));
      fill(p->moment1, normal(size, 0.1f, ++which));
      auto squares = normal(size, 0.1f, ++which);
      for (float& x : squares) x *= x;
      fill(p->moment2, squares);
    }
  }
  static void fill(Buffer<float>& to, const std::vector<float>& from) {
    std::copy(from.begin(), from.end(), to.data());
  }
  ParameterSet all;
};

/// `device` holds the parameters of `same`, which has those of `host`.
template <class T>
void upload_gradients(ParameterSet& host, ParameterSet& same, DeviceParameters<T>& device,
                      cudaStream_t stream) {
  for (std::size_t i = 0; i < host.all().size(); ++i) {
    const Parameter& p = *host.all()[i];
    AIRMOE_CUDA(cudaMemcpyAsync(device.gradient(*same.all()[i]), p.gradient.data(),
                                static_cast<std::size_t>(p.local_size()) * sizeof(float),
                                cudaMemcpyHostToDevice, stream));
  }
}

template <class T>
class Optimizer : public ::testing::Test {};
using ComputeTypes = ::testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(Optimizer, ComputeTypes);

TYPED_TEST(Optimizer, StepHasTheBitsOfTheHost) {
  using T = TypeParam;
  const Stream stream;
  Parameters host, on_device;
  DeviceParameters<T> device(on_device.all);
  device.upload(stream);
  const AdamWOptions options{0.9f, 0.95f, 1e-8f, 0.1f};
  const auto factor = to_device<float>(std::vector<float>{0.37f});
  for (const int64_t step : {1, 2, 7}) {
    upload_gradients(host.all, on_device.all, device, stream);
    adamw_step(device, options, 1e-2f, step, factor.data(), nullptr, stream);
    scheduler::adamw_step(host.all, options, 1e-2f, step, 0.37f);
    for (auto& p : host.all.all()) {
      Parameters::fill(p->gradient,
                       normal(p->local_size(), 0.2f, static_cast<uint32_t>(50 + step)));
    }
  }
  device.download(stream);
  for (std::size_t i = 0; i < host.all.all().size(); ++i) {
    Parameter &expected = *host.all.all()[i], &found = *on_device.all.all()[i];
    for (int64_t j = 0; j < expected.local_size(); ++j) {
      ASSERT_EQ(found.value[j], expected.value[j]) << expected.name << " " << j;
      ASSERT_EQ(found.moment1[j], expected.moment1[j]) << expected.name << " " << j;
      ASSERT_EQ(found.moment2[j], expected.moment2[j]) << expected.name << " " << j;
    }
    std::vector<T> copy(static_cast<std::size_t>(found.local_size()));
    std::vector<float> gradient(copy.size());
    AIRMOE_CUDA(cudaMemcpy(copy.data(), device.compute(found), copy.size() * sizeof(T),
                           cudaMemcpyDeviceToHost));
    AIRMOE_CUDA(cudaMemcpy(gradient.data(), device.gradient(found), copy.size() * sizeof(float),
                           cudaMemcpyDeviceToHost));
    for (std::size_t j = 0; j < copy.size(); ++j) {
      ASSERT_EQ(static_cast<float>(copy[j]), static_cast<float>(static_cast<T>(found.value[j])));
      ASSERT_EQ(gradient[j], 0.0f);
    }
  }
}

TEST(Optimizer, SkippedStepChangesNothing) {
  const Stream stream;
  Parameters parameters, same;
  DeviceParameters<float> device(parameters.all);
  device.upload(stream);
  const auto skip = to_device<int>(std::vector<int>{1});
  adamw_step(device, {}, 1e-2f, 1, nullptr, skip.data(), stream);
  device.download(stream);
  for (std::size_t i = 0; i < same.all.all().size(); ++i) {
    Parameter &expected = *same.all.all()[i], &found = *parameters.all.all()[i];
    EXPECT_TRUE(std::equal(expected.value.begin(), expected.value.end(), found.value.begin()));
    EXPECT_TRUE(
        std::equal(expected.moment1.begin(), expected.moment1.end(), found.moment1.begin()));
  }
  EXPECT_THROW(adamw_step(device, {}, 1e-2f, 0, nullptr, nullptr, stream), Error);
}

ClipState clip(const DeviceBuffer<GradientSquares>& squares, double limit, double loss,
               const Stream& stream) {
  const auto device_loss = to_device<double>(std::vector<double>{loss});
  DeviceBuffer<ClipState> state(1);
  clip_by_norm(squares.data(), device_loss.data(), limit, state.data(), stream);
  return from_device<ClipState>(state, stream)[0];
}

TYPED_TEST(Optimizer, NormAndClippingAgreeWithTheHost) {
  using T = TypeParam;
  const Stream stream;
  Parameters parameters;
  DeviceParameters<T> device(parameters.all);
  upload_gradients(parameters.all, parameters.all, device, stream);
  GradientNormWorkspace workspace;
  DeviceBuffer<GradientSquares> squares(1);
  gradient_norm(device, squares.data(), workspace, stream);
  const GradientSquares found = from_device<GradientSquares>(squares, stream)[0];
  const double expected = local_sum_of_squares(parameters.all, true);
  const double experts = local_sum_of_squares(parameters.all, false);
  EXPECT_NEAR(found.by_expert, experts, 1e-12 * experts);
  EXPECT_NEAR(found.replicated + found.by_expert, expected, 1e-12 * expected);

  const double norm = std::sqrt(expected);
  const ClipState clipped = clip(squares, norm / 3, 1.0, stream);
  EXPECT_NEAR(clipped.norm, norm, 1e-12 * norm);
  EXPECT_FLOAT_EQ(clipped.factor, static_cast<float>(clip_factor(norm, norm / 3)));
  EXPECT_EQ(clipped.skip, 0);
  EXPECT_EQ(clip(squares, 0, 1.0, stream).factor, 1.0f);
  EXPECT_EQ(clip(squares, 2 * norm, 1.0, stream).factor, 1.0f);
  EXPECT_EQ(clip(squares, 0, std::numeric_limits<double>::quiet_NaN(), stream).skip, 1);

  parameters.all.all()[3]->gradient[5] = std::numeric_limits<float>::infinity();
  upload_gradients(parameters.all, parameters.all, device, stream);
  gradient_norm(device, squares.data(), workspace, stream);
  EXPECT_EQ(clip(squares, 1.0, 1.0, stream).skip, 1);
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
