// Selection counts and the balance loss on a device against plain loops.

#include "router/cuda/usage.hpp"

#include <set>

#include <gtest/gtest.h>

#include "router/cuda/routed_data.hpp"

namespace airmoe::router::cuda {
namespace {

struct Shape {
  int64_t tokens, codewords, experts, length, active;
};

/// Lists and selections made on the host.
struct Case {
  Case(const Shape& s, cudaStream_t stream)
      : shape(s),
        random(static_cast<uint32_t>(s.tokens + s.active)),
        routed(test::skewed_codewords(random, s.tokens, s.codewords), s.codewords, stream) {
    for (int64_t g = 0; g < s.codewords; ++g) {
      std::set<int32_t> list;  // ascending; different lists overlap
      while (std::ssize(list) < s.length) {
        list.insert(static_cast<int32_t>(random.integer(0, s.experts - 1)));
      }
      id.insert(id.end(), list.begin(), list.end());
    }
    for (int64_t place = 0; place < s.tokens; ++place) {
      std::set<uint16_t> chosen;
      while (std::ssize(chosen) < s.active) {
        chosen.insert(static_cast<uint16_t>(random.integer(0, s.length - 1)));
      }
      position.insert(position.end(), chosen.begin(), chosen.end());
      for (int64_t p = 0; p < s.active; ++p) {
        gate.push_back(static_cast<float>(random.integer(1, 1000)) * 1e-3f);
      }
    }
    count.assign(s.experts, 0);
    for (int64_t g = 0; g < s.codewords; ++g) {
      for (int64_t i = routed.begin[g] * s.active; i < routed.begin[g + 1] * s.active; ++i) {
        expert.push_back(id[g * s.length + position[i]]);
        ++count[expert.back()];
      }
    }
    device_id.upload(id, stream);
    device_position.upload(position, stream);
    device_gate.upload(gate, stream);
  }
  DeviceLists lists() const { return {shape.length, device_id.data(), device_id.data()}; }
  SelectedPairs pairs() const { return {shape.active, device_position.data(), device_gate.data()}; }

  Shape shape;
  airmoe::router::test::Random random;
  test::RoutedTokens routed;
  std::vector<int32_t> id, expert, count;  // expert: by pair in place order
  std::vector<uint16_t> position;
  std::vector<float> gate;
  test::DeviceBuffer<int32_t> device_id;
  test::DeviceBuffer<uint16_t> device_position;
  test::DeviceBuffer<float> device_gate;
};

constexpr Shape kShapes[] = {
    {0, 4, 100, 16, 4},       {1, 1, 20, 5, 5},          {100, 1, 64, 64, 7},
    {513, 37, 1000, 130, 32}, {300, 8, 30000, 9001, 33}, {64, 2, 70000, 65536, 512},
};

TEST(DeviceUsage, CountsEverySelectionAndAddsToTheWindow) {
  const test::Stream stream;
  for (const Shape& shape : kShapes) {
    const Case data(shape, stream);
    std::vector<int64_t> window(shape.experts);
    for (int64_t e = 0; e < shape.experts; ++e) window[e] = int64_t{e} << 33;
    test::DeviceBuffer<int32_t> count(shape.experts);
    test::DeviceBuffer<int64_t> sums;
    sums.upload(window, stream);
    for (int repeat = 0; repeat < 2; ++repeat) {
      count_selections(data.lists(), data.routed.view(), data.pairs(), shape.experts, count.data(),
                       repeat == 0 ? sums.data() : nullptr, stream);
      EXPECT_EQ(test::download(count.data(), shape.experts, stream), data.count);
    }
    for (int64_t e = 0; e < shape.experts; ++e) window[e] += data.count[e];
    EXPECT_EQ(test::download(sums.data(), shape.experts, stream), window);
  }
}

TEST(DeviceUsage, BalanceLossAndItsGradient) {
  const test::Stream stream;
  for (const Shape& shape : kShapes) {
    const Case data(shape, stream);
    test::DeviceBuffer<int32_t> count;
    count.upload(data.count, stream);
    const float slope = 0.37f;
    double expected = 2.5;
    std::vector<float> d_gate(data.gate);
    for (std::size_t p = 0; p < data.gate.size(); ++p) {
      const int32_t c = data.count[data.expert[p]];
      expected += 0.37 * static_cast<double>(c) * static_cast<double>(data.gate[p]);
      const float share = slope * static_cast<float>(c);
      d_gate[p] += share;
    }
    test::DeviceBuffer<double> value;
    test::DeviceBuffer<float> gradient;
    BalanceWorkspace workspace;
    value.upload(std::vector<double>{2.5}, stream);
    gradient.upload(data.gate, stream);
    add_balance_loss(data.lists(), data.routed.view(), data.pairs(), count.data(), 0.37,
                     value.data(), workspace, stream);
    const double once = test::download(value.data(), 1, stream)[0];
    EXPECT_NEAR(once, expected, 1e-12 * expected);
    add_balance_gradient(data.lists(), data.routed.view(), data.pairs(), count.data(), slope,
                         gradient.data(), stream);
    EXPECT_EQ(test::download(gradient.data(), std::ssize(d_gate), stream), d_gate);
    value.upload(std::vector<double>{2.5}, stream);  // the same bits again
    add_balance_loss(data.lists(), data.routed.view(), data.pairs(), count.data(), 0.37,
                     value.data(), workspace, stream);
    EXPECT_EQ(test::download(value.data(), 1, stream)[0], once);
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
