// Shortlists on a device against local_top() of the host, and in bf16 against doubles.

#include "router/cuda/shortlists.hpp"

#include <gtest/gtest.h>

#include "router/cuda/routed_data.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router::cuda {
namespace {

using airmoe::router::test::matrix;
using airmoe::router::test::Random;

struct Shape {
  int64_t codewords, experts, length, dim;
};

/// Unit vectors around a few centres; codewords near some of them. As trained states: some experts
/// close, most far away.
struct Clusters {
  Clusters(const Shape& s, uint32_t seed)
      : shape(s), random(seed), centre(random.normals(20 * s.dim)) {
    unit.resize(s.experts * s.dim);
    codebook.resize(s.codewords * s.dim);
    fill(unit, 1.5f);
    fill(codebook, 0.7f);
  }
  void fill(std::vector<float>& rows, float spread) {
    for (std::size_t begin = 0; begin < rows.size(); begin += shape.dim) {
      const float* c = centre.data() + random.integer(0, 19) * shape.dim;
      double square = 0;
      for (int64_t k = 0; k < shape.dim; ++k) {
        rows[begin + k] = c[k] + spread * random.normal();
        square += static_cast<double>(rows[begin + k]) * rows[begin + k];
      }
      const auto inverse = static_cast<float>(1 / std::sqrt(square));
      for (int64_t k = 0; k < shape.dim; ++k) rows[begin + k] *= inverse;
    }
  }
  /// As an optimizer step does.
  void drift(float amount) {
    for (float& x : unit) x += amount * random.normal() / std::sqrt(static_cast<float>(shape.dim));
    for (float& x : codebook)
      x += amount * random.normal() / std::sqrt(static_cast<float>(shape.dim));
  }

  Shape shape;
  Random random;
  std::vector<float> centre, unit, codebook;
};

/// The host's lists, ids ascending.
std::vector<int32_t> host_lists(const Shape& s, const std::vector<float>& codebook,
                                const std::vector<float>& unit,
                                const std::optional<Jitter>& jitter) {
  std::vector<int32_t> codewords(s.codewords), experts(s.experts);
  std::iota(codewords.begin(), codewords.end(), 0);
  std::iota(experts.begin(), experts.end(), 0);
  LocalTop top;
  ShortlistWorkspace workspace;
  local_top(matrix(codebook, s.codewords, s.dim), codewords, matrix(unit, s.experts, s.dim),
            experts, s.length, jitter, top, workspace);
  std::vector<int32_t> lists(top.expert.data(), top.expert.data() + s.codewords * s.length);
  for (int64_t g = 0; g < s.codewords; ++g) {
    std::sort(lists.begin() + g * s.length, lists.begin() + (g + 1) * s.length);
  }
  return lists;
}

/// Rebuilds lists of host data.
template <class T>
class Device {
 public:
  Device(const Shape& s)
      : shape_(s), table_(stream), lists_(s.codewords, s.experts, s.length, s.dim) {}

  std::vector<int32_t> rebuild(const std::vector<float>& codebook, const std::vector<float>& unit,
                               const std::optional<Jitter>& jitter,
                               const std::optional<std::vector<int32_t>>& which = {}) {
    codebook_.upload(test::rounded<T>(codebook), stream);
    unit_.upload(test::rounded<T>(unit), stream);
    std::optional<airmoe::cuda::JitterKey> key;
    if (jitter) key = table_.key(jitter->stream, jitter->stddev);
    if (which) {
      std::vector<int32_t> ids = *which, count{static_cast<int32_t>(which->size())};
      ids.push_back(-1);
      ids_.upload(ids, stream);
      count_.upload(count, stream);
      lists_.rebuild(codebook_.data(), unit_.data(), key, {ids_.data(), count_.data()}, stream);
    } else {
      lists_.rebuild(codebook_.data(), unit_.data(), key, stream);
    }
    return test::download(lists_.view().id, shape_.codewords * shape_.length, stream);
  }
  ListSearches searches() const { return lists_.searches(stream); }

  const test::Stream stream;

 private:
  Shape shape_;
  airmoe::cuda::JitterTable table_;
  DeviceShortlists<T> lists_;
  test::DeviceBuffer<T> codebook_, unit_;
  test::DeviceBuffer<int32_t> ids_, count_;
};

const std::optional<Jitter> kNoise[] = {
    std::nullopt, Jitter{RandomStream(5, Purpose::jitter_shortlist, 3, 1, 2), 0.01f}};

constexpr Shape kShapes[] = {
    {1, 1, 1, 8},          {3, 50, 50, 16},       {5, 1000, 37, 24},   {37, 5003, 64, 64},
    {130, 20000, 300, 72}, {20, 30000, 8000, 40}, {3, 600000, 100, 8},
};

TEST(DeviceShortlists, SameListsAsOnTheHost) {
  for (const Shape& shape : kShapes) {
    for (const auto& noise : kNoise) {
      Clusters data(shape, 1);
      Device<float> device(shape);
      for (int step = 0; step < 3; ++step) {  // from the second on with thresholds of the last
        ASSERT_EQ(device.rebuild(data.codebook, data.unit, noise),
                  host_lists(shape, data.codebook, data.unit, noise))
            << shape.experts << " experts, step " << step;
        data.drift(0.01f);
      }
    }
  }
}

TEST(DeviceShortlists, ThresholdsAreUsuallyRight) {
  const Shape shape{130, 20000, 300, 72};
  Clusters data(shape, 2);
  Device<float> device(shape);
  device.rebuild(data.codebook, data.unit, kNoise[1]);
  EXPECT_LE(device.searches().second, 1);
  const int64_t first = device.searches().second;
  for (int step = 0; step < 5; ++step) {
    data.drift(0.02f);
    device.rebuild(data.codebook, data.unit, kNoise[1]);
  }
  EXPECT_LE(device.searches().second - first, 2);
  EXPECT_EQ(device.searches().exhaustive, 0);
}

// Everything about the scores changes, so thresholds are useless: much too low, too high, of no
// numbers. A second one does.
template <class T>
void expect_second_thresholds(const Shape& shape) {
  Clusters data(shape, 3);
  Device<T> device(shape);
  int64_t useless = 0;
  for (const float scale : {1.0f, 1024.0f, 1.0f / 1024, NAN, 1.0f}) {
    std::vector<float> codebook = data.codebook;
    const int64_t before = device.searches().exhaustive;
    // Half of them, so that both kinds share a tile.
    for (std::size_t i = 0; i < codebook.size() / 2; ++i) codebook[i] *= scale;
    const auto lists = device.rebuild(codebook, data.unit, kNoise[0]);
    if constexpr (std::is_same_v<T, float>) {
      EXPECT_EQ(lists, host_lists(shape, codebook, data.unit, kNoise[0]));
    }
    const bool numbers = scale == scale;
    EXPECT_EQ(device.searches().exhaustive - before, numbers ? 0 : shape.codewords / 2);
    if (scale != 1.0f || useless > 0) useless += shape.codewords / 2;
    EXPECT_GE(device.searches().second, useless);
    EXPECT_LE(device.searches().second, useless + 2);
  }
}

TEST(DeviceShortlists, UselessThresholdsAreLookedForAgain) {
  for (const Shape& shape : {Shape{20, 40000, 60, 16}, Shape{300, 40000, 300, 32}}) {
    expect_second_thresholds<float>(shape);
    expect_second_thresholds<__nv_bfloat16>(shape);
  }
}

TEST(DeviceShortlists, TiesGoToSmallerIdsAndNaNsComeLast) {
  for (const Shape& shape : {Shape{9, 3000, 70, 8}, Shape{4, 300000, 50, 8}}) {
    Random random(4);
    auto codebook = random.integers(shape.codewords * shape.dim, -1, 1);
    auto unit = random.integers(shape.experts * shape.dim, -1, 1);
    std::fill_n(codebook.begin(), shape.dim, 0.0f);  // every score of codeword 0 is zero
    for (int64_t e = 0; e < shape.experts; e += 7) unit[e * shape.dim + 1] = NAN;
    for (int64_t e = 0; e < shape.experts; e += 5) unit[e * shape.dim] = -0.0f;
    std::fill_n(codebook.begin() + 2 * shape.dim, shape.dim, NAN);  // none is a number
    Device<float> device(shape);
    for (int repeat = 0; repeat < 2; ++repeat) {
      EXPECT_EQ(device.rebuild(codebook, unit, kNoise[0]),
                host_lists(shape, codebook, unit, kNoise[0]));
    }
    EXPECT_GT(device.searches().exhaustive, 0);
  }
}

TEST(DeviceShortlists, SomeCodewordsOnly) {
  const Shape shape{40, 6000, 90, 32};
  Clusters data(shape, 5);
  Device<float> device(shape);
  auto lists = device.rebuild(data.codebook, data.unit, kNoise[1]);
  data.drift(0.5f);
  const auto fresh = host_lists(shape, data.codebook, data.unit, kNoise[1]);
  for (const std::vector<int32_t>& which :
       {std::vector<int32_t>{}, std::vector<int32_t>{7}, std::vector<int32_t>{0, 8, 21, 39}}) {
    for (const int32_t g : which) {
      std::copy_n(fresh.begin() + g * shape.length, shape.length, lists.begin() + g * shape.length);
    }
    EXPECT_EQ(device.rebuild(data.codebook, data.unit, kNoise[1], which), lists);
  }
}

// So long that codewords go in several chunks.
TEST(DeviceShortlists, LongListsInChunks) {
  const Shape shape{200, 170000, 65536, 8};
  Clusters data(shape, 6);
  Device<float> device(shape);
  EXPECT_EQ(device.rebuild(data.codebook, data.unit, kNoise[0]),
            host_lists(shape, data.codebook, data.unit, kNoise[0]));
}

// Small integers: sums in bf16 are exact, in whatever order.
TEST(DeviceShortlists, Bf16ListsOfIntegersAreExact) {
  for (const Shape& shape :
       {Shape{3, 50, 50, 16}, Shape{37, 5003, 64, 136}, Shape{300, 9000, 200, 256},
        Shape{5, 20000, 40, 1024}, Shape{300, 9024, 200, 256}, Shape{700, 6016, 100, 136},
        Shape{130, 7968, 80, 72}, Shape{20, 4000, 60, 520}, Shape{520, 4992, 60, 320}}) {
    for (const auto& noise : kNoise) {
      Random random(7);
      const auto codebook = random.integers(shape.codewords * shape.dim, -100, 100);
      const auto unit = random.integers(shape.experts * shape.dim, -30, 30);
      Device<__nv_bfloat16> device(shape);
      for (int repeat = 0; repeat < 2; ++repeat) {
        ASSERT_EQ(device.rebuild(codebook, unit, noise), host_lists(shape, codebook, unit, noise))
            << shape.experts << " experts of " << shape.dim;
      }
    }
  }
}

// Every expert of a list scores at least as much as the best outside, up to fp32 rounding of sums.
TEST(DeviceShortlists, Bf16ListsHoldTheBest) {
  for (const Shape& shape :
       {Shape{130, 20000, 300, 256}, Shape{16, 8000, 500, 768}, Shape{140, 20001, 300, 64}}) {
    Clusters data(shape, 8);
    Device<__nv_bfloat16> device(shape);
    for (int step = 0; step < 3; ++step) {
      const auto lists = device.rebuild(data.codebook, data.unit, kNoise[1]);
      const auto codebook = test::through<__nv_bfloat16>(data.codebook);
      const auto unit = test::through<__nv_bfloat16>(data.unit);
      for (int64_t g = 0; g < shape.codewords; g += 5) {
        std::vector<bool> listed(shape.experts, false);
        for (int64_t i = 0; i < shape.length; ++i) {
          const int32_t e = lists[g * shape.length + i];
          ASSERT_TRUE(i == 0 || e > lists[g * shape.length + i - 1]);
          listed[e] = true;
        }
        double worst = INFINITY, best_outside = -INFINITY;
        for (int32_t e = 0; e < shape.experts; ++e) {
          float noise = 0.0f;
          add_jitter(&noise, &e, 1, kNoise[1]->stddev, kNoise[1]->stream, static_cast<uint32_t>(g),
                     0);
          const double score =
              static_cast<double>(noise) +
              airmoe::router::test::dot(&codebook[g * shape.dim], &unit[e * shape.dim], shape.dim);
          double& extreme = listed[e] ? worst : best_outside;
          extreme = listed[e] ? std::min(worst, score) : std::max(best_outside, score);
        }
        ASSERT_GE(worst, best_outside - 1e-6);
      }
      data.drift(0.01f);
    }
    EXPECT_LE(device.searches().second, 4);
    EXPECT_EQ(device.searches().exhaustive, 0);
  }
}

TEST(DeviceShortlists, OtherWidthsAreRefusedByName) {
  try {
    DeviceShortlists<float>(4, 100, 10, 12);
    FAIL() << "12 columns were accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--dim 12"), std::string::npos);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
