#include "router/cuda/softmax_backward.hpp"

#include <gtest/gtest.h>

#include "router/cuda/device_data.hpp"

namespace airmoe::router::cuda {
namespace {

using test::Random;
using test::Stream;

TEST(DeviceSoftmaxBackward, EqualsDoublePrecision) {
  const Stream stream;
  Random random(1);
  for (const int64_t k : {1, 7, 32, 65, 512, 3000}) {
    for (const int64_t n : {0, 1, 7, 8, 50}) {
      std::vector<float> gate(n * k);
      for (int64_t t = 0; t < n; ++t) {
        double sum = 0.0;
        for (int64_t p = 0; p < k; ++p) sum += gate[t * k + p] = std::exp(random.normal());
        for (int64_t p = 0; p < k; ++p) gate[t * k + p] /= static_cast<float>(sum);
      }
      const auto d_gate = random.normals(n * k);
      auto device_gate = test::to_device(gate, stream);
      auto device_d_gate = test::to_device(d_gate, stream);
      test::DeviceBuffer<float> apart(n * k);
      softmax_backward(device_gate.data(), device_d_gate.data(), k, n, apart.data(), stream);
      softmax_backward(device_gate.data(), device_d_gate.data(), k, n, device_d_gate.data(),
                       stream);
      const auto found = test::to_host(apart.data(), n * k, stream);
      EXPECT_EQ(test::to_host(device_d_gate.data(), n * k, stream), found) << "in place";
      for (int64_t t = 0; t < n; ++t) {
        double dot = 0.0;
        for (int64_t p = t * k; p < (t + 1) * k; ++p) {
          dot += static_cast<double>(gate[p]) * d_gate[p];
        }
        for (int64_t p = t * k; p < (t + 1) * k; ++p) {
          ASSERT_NEAR(found[p], gate[p] * (d_gate[p] - dot), 2e-6 * gate[p])
              << "n " << n << " k " << k << " pair " << p;
        }
      }
    }
  }
}

}  // namespace
}  // namespace airmoe::router::cuda
