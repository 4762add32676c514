#pragma once
// Arrays for tests: random data in the compute type, copies to and from the device, distances.

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/stream.hpp"
#include "comm/base/random.hpp"

namespace airmoe::test {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::Stream;

inline std::vector<float> normal(int64_t size, float stddev, uint32_t which) {
  std::vector<float> x(static_cast<std::size_t>(size));
  RandomStream(7, Purpose::test_data, which).fill_normal(x.data(), size, 0, stddev);
  return x;
}

inline std::vector<int32_t> uniform_ids(int64_t size, int64_t range, uint32_t which) {
  std::vector<int32_t> x(static_cast<std::size_t>(size));
  const RandomStream stream(8, Purpose::test_data, which);
  for (int64_t i = 0; i < size; ++i) {
    x[static_cast<std::size_t>(i)] =
        static_cast<int32_t>(stream.uniform(static_cast<uint64_t>(i)) * static_cast<double>(range));
  }
  return x;
}

/// Each value as the compute type holds it.
template <class T>
std::vector<float> rounded(std::vector<float> x) {
  for (float& value : x) value = static_cast<float>(static_cast<T>(value));
  return x;
}

template <class T, class From>
DeviceBuffer<T> to_device(const std::vector<From>& from) {
  std::vector<T> converted;
  converted.reserve(from.size());
  for (const From& value : from) converted.push_back(static_cast<T>(value));
  const Stream stream;
  DeviceBuffer<T> buffer;
  buffer.upload(converted, stream);
  stream.synchronize();
  return buffer;
}

template <class To, class T>
std::vector<To> from_device(const DeviceBuffer<T>& buffer, const Stream& stream) {
  std::vector<T> raw(static_cast<std::size_t>(buffer.size()));
  buffer.download(raw, stream);
  stream.synchronize();
  std::vector<To> out;
  out.reserve(raw.size());
  for (const T& value : raw) out.push_back(static_cast<To>(value));
  return out;
}

/// |a - b| / |b|, Euclidean; |a| where b is zero.
inline double relative_distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(size > 0 ? difference / size : difference);
}

inline double cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    product += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    aa += static_cast<double>(a[i]) * static_cast<double>(a[i]);
    bb += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return product / std::sqrt(aa * bb);
}

/// Of results in type T: float 1e-5, bf16 its rounding.
template <class T>
constexpr double tolerance() {
  return sizeof(T) == 4 ? 1e-5 : 6e-3;
}

}  // namespace airmoe::test
