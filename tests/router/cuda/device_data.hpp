#pragma once
// Test data on a device: copies there and back, bf16 as the host sees it, clustered states.

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/stream.hpp"
#include "router/data.hpp"

namespace airmoe::router::cuda::test {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::Stream;
using router::test::Random;

/// Floats as kernels get them; rounds `x` to what the device sees.
template <class T>
std::vector<T> rounded(std::vector<float>& x) {
  std::vector<T> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    if constexpr (std::is_same_v<T, float>) {
      out[i] = x[i];
    } else {
      out[i] = __float2bfloat16(x[i]);
      x[i] = __bfloat162float(out[i]);
    }
  }
  return out;
}

template <class T>
DeviceBuffer<T> to_device(const std::vector<T>& x, const Stream& stream) {
  DeviceBuffer<T> out;
  out.upload(x, stream);
  stream.synchronize();
  return out;
}

template <class T>
std::vector<T> to_host(const T* x, int64_t count, const Stream& stream) {
  std::vector<T> out(static_cast<std::size_t>(count));
  if (count == 0) return out;
  AIRMOE_CUDA(
      cudaMemcpyAsync(out.data(), x, out.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
  stream.synchronize();
  return out;
}

/// Rows of the given length around `centres` directions, `spread` of noise per unit of direction.
/// Rows of one centre are the same in every set with the same seed of centres.
inline std::vector<float> clustered(Random& random, const std::vector<float>& centre, int64_t rows,
                                    int64_t d, float spread, float length) {
  const int64_t centres = std::ssize(centre) / d;
  std::vector<float> x(static_cast<std::size_t>(rows * d));
  const float noise = spread / std::sqrt(static_cast<float>(d));
  for (int64_t i = 0; i < rows; ++i) {
    const float* c = centre.data() + random.integer(0, centres - 1) * d;
    float* row = x.data() + i * d;
    double squares = 0.0;
    for (int64_t k = 0; k < d; ++k) {
      row[k] = c[k] + noise * random.normal();
      squares += static_cast<double>(row[k]) * row[k];
    }
    const float scale = length / static_cast<float>(std::sqrt(squares));
    for (int64_t k = 0; k < d; ++k) row[k] *= scale;
  }
  return x;
}

/// Directions to cluster around. Shape: [centres, d]
inline std::vector<float> centres(Random& random, int64_t count, int64_t d) {
  std::vector<float> x = random.normals(count * d);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (float& v : x) v *= scale;
  return x;
}

}  // namespace airmoe::router::cuda::test
