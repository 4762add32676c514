// Updates that rows of experts wait for, against updates of all rows in every step on the host.

#include "scheduler/cuda/expert_rows.hpp"

#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "scheduler/cuda/adamw.hpp"
#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/optim/gradient_norm.hpp"
#include "tests/scheduler/cuda/device_arrays.hpp"

namespace airmoe::scheduler::cuda {
namespace {

using test::normal;
using test::Stream;

struct Shape {
  int64_t rows, dim, expert_dim;
};

// One replicated matrix and the experts of two layers.
struct Parameters {
  explicit Parameters(const Shape& s) {
    matrix = &all.add_replicated("/matrix", {24, 8}, true);
    for (const char* layer : {"/a", "/b"}) {
      const std::string path = layer;
      const BlockPartition experts{s.rows, 1};
      scored.push_back(&all.add_by_expert(path + "/centroid", {s.rows, s.dim}, experts, 0, false));
      for (const char* name : {"/up", "/down"}) {
        computed.push_back(
            &all.add_by_expert(path + name, {s.rows, s.expert_dim, s.dim}, experts, 0, true));
      }
    }
    uint32_t which = 0;
    for (auto& p : all.all()) {
      const auto from = normal(p->local_size(), 1.0f, ++which);
      std::copy(from.begin(), from.end(), p->value.data());
    }
  }
  ParameterSet all;
  Parameter* matrix;
  std::vector<Parameter*> scored, computed;
};

template <class T>
class Run {
 public:
  explicit Run(const Shape& shape)
      : shape_(shape), host(shape), mirror(shape), device(mirror.all), count(shape.rows) {
    for (int layer = 0; layer < 2; ++layer) {
      written_[layer].resize(static_cast<std::size_t>(shape.rows));
      rows[layer] =
          &device.track_rows(shape.rows, {mirror.scored[layer]},
                             {mirror.computed[2 * layer], mirror.computed[2 * layer + 1]});
    }
    device.upload(stream);
  }

  /// Selects experts of a layer with this probability; in training they get a gradient.
  void select(int layer, double share, bool training) {
    std::bernoulli_distribution chosen(share);
    std::vector<int32_t> counts(static_cast<std::size_t>(shape_.rows));
    for (int32_t& c : counts) c = chosen(random_) ? 3 : 0;
    count.upload(counts, stream);
    select_rows(device, *rows[layer], count.data(), stream);
    expect_current(layer, counts);
    if (!training) return;
    for (std::size_t r = 0; r < counts.size(); ++r) {
      if (counts[r] > 0) written_[layer][r] = device.history().next();
    }
    rows[layer]->written.upload(written_[layer], stream);
    for (const int i : {2 * layer, 2 * layer + 1, 4 + layer}) {
      Parameter& p = i < 4 ? *host.computed[i] : *host.scored[layer];
      Parameter& on_device = i < 4 ? *mirror.computed[i] : *mirror.scored[layer];
      const auto gradient = normal(p.local_size(), 0.1f, ++seed_);
      for (int64_t j = 0; j < p.local_size(); ++j) {
        if (counts[static_cast<std::size_t>(j / p.row_size())] > 0) p.gradient[j] += gradient[j];
      }
      std::vector<float> sent(p.gradient.data(), p.gradient.data() + p.local_size());
      for (std::size_t j = 0; j < sent.size(); ++j) {  // the others hold anything
        const auto r = j / static_cast<std::size_t>(p.row_size());
        if (written_[layer][r] != device.history().next()) sent[j] = NAN;
      }
      AIRMOE_CUDA(cudaMemcpyAsync(device.gradient(on_device), sent.data(),
                                  sent.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
      stream.synchronize();
    }
  }

  void step(int64_t number, bool skip) {
    GradientNormWorkspace norm;
    DeviceBuffer<GradientSquares> squares(1);
    gradient_norm(device, squares.data(), norm, stream);
    const GradientSquares found = test::from_device<GradientSquares>(squares, stream)[0];
    const double expected = local_sum_of_squares(host.all, false);
    EXPECT_NEAR(found.by_expert, expected, 1e-12 * expected);
    const auto flag = test::to_device<int>(std::vector<int>{skip ? 1 : 0});
    const AdamWOptions options{0.9f, 0.95f, 1e-8f, 0.1f};
    const auto rate = static_cast<float>(1e-2 / (1 + 0.1 * static_cast<double>(number)));
    adamw_step(device, options, rate, number, nullptr, flag.data(), stream);
    if (skip) return;
    scheduler::adamw_step(host.all, options, rate, number, 1.0f);
    host.all.zero_gradients();
  }

  /// After a download everything is as on the host.
  void expect_equal() {
    device.download(stream);
    for (std::size_t i = 0; i < host.all.all().size(); ++i) {
      const Parameter &expected = *host.all.all()[i], &found = *mirror.all.all()[i];
      for (int64_t j = 0; j < expected.local_size(); ++j) {
        ASSERT_EQ(found.value[j], expected.value[j]) << expected.name << " " << j;
        ASSERT_EQ(found.moment1[j], expected.moment1[j]) << expected.name << " " << j;
        ASSERT_EQ(found.moment2[j], expected.moment2[j]) << expected.name << " " << j;
      }
    }
  }

  const Stream stream;

 private:
  /// What kernels read of selected experts is what the host has now.
  void expect_current(int layer, const std::vector<int32_t>& counts) {
    for (const int i : {2 * layer, 2 * layer + 1}) {
      const Parameter& p = *host.computed[i];
      std::vector<T> copy(static_cast<std::size_t>(p.local_size()));
      stream.synchronize();
      AIRMOE_CUDA(cudaMemcpy(copy.data(), device.compute(*mirror.computed[i]),
                             copy.size() * sizeof(T), cudaMemcpyDeviceToHost));
      for (int64_t j = 0; j < p.local_size(); ++j) {
        if (counts[static_cast<std::size_t>(j / p.row_size())] == 0) continue;
        ASSERT_EQ(static_cast<float>(copy[static_cast<std::size_t>(j)]),
                  static_cast<float>(static_cast<T>(p.value[j])))
            << p.name << " " << j;
      }
    }
  }

  Shape shape_;
  std::mt19937 random_{7};
  uint32_t seed_ = 100;
  std::vector<int32_t> written_[2];

 public:
  Parameters host, mirror;
  DeviceParameters<T> device;
  ExpertRows* rows[2];
  DeviceBuffer<int32_t> count;
};

template <class T>
class WaitingRows : public ::testing::Test {};
using ComputeTypes = ::testing::Types<float, __nv_bfloat16>;
TYPED_TEST_SUITE(WaitingRows, ComputeTypes);

TYPED_TEST(WaitingRows, HaveTheBitsOfUpdatesAtOnce) {
  // Rows that fill tiles, do not, and are longer than one.
  for (const Shape& shape : {Shape{1100, 16, 1}, Shape{70, 72, 5}, Shape{9, 2048, 6}}) {
    SCOPED_TRACE(shape.rows);
    Run<TypeParam> run(shape);
    for (int64_t step = 1; step <= 9; ++step) {
      run.select(0, step == 3 ? 0.0 : 0.3, true);
      run.select(1, step == 4 ? 1.0 : 0.05, true);
      if (step % 2 == 0) run.select(0, 0.3, true);  // a second micro-batch
      run.step(step, false);
      if (step % 4 == 0) run.select(1, 0.5, false);
      if (step == 6) run.expect_equal();
    }
    run.expect_equal();
  }
}

TYPED_TEST(WaitingRows, ForgetSkippedSteps) {
  Run<TypeParam> run({40, 8, 1});
  run.select(0, 0.5, true);
  run.step(1, false);
  run.step(2, true);  // without gradients, so that none are left
  run.select(1, 0.5, true);
  run.step(3, false);
  run.expect_equal();
}

TYPED_TEST(WaitingRows, WaitForMoreStepsThanAreKept) {
  Run<TypeParam> run({20, 8, 1});
  run.select(0, 0.5, true);
  for (int64_t step = 1; step <= 2 * UpdateHistory::kMost + 3; ++step) {
    if (step == UpdateHistory::kMost) run.select(1, 0.5, true);
    run.step(step, false);
  }
  run.select(0, 1.0, false);
  run.expect_equal();
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
