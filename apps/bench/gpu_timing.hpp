#pragma once
// Times of work on a CUDA device, and synthetic states to work on.

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/base/buffer.hpp"
#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/stream.hpp"

namespace airmoe::bench {

/// Milliseconds of one call on the device, by events around it; the second-level cache is filled
/// with other data before every call, as it is in a model.
struct DeviceTiming {
  double median = 0, least = 0, p90 = 0;
  int64_t repetitions = 0;
};
class DeviceTimer {
 public:
  DeviceTimer(const cuda::Stream& stream, int64_t warm_up, int64_t repetitions);
  DeviceTiming measure(const std::function<void(int64_t repetition)>& body);

 private:
  const cuda::Stream& stream_;
  int64_t warm_up_, repetitions_;
  cuda::DeviceBuffer<char> flush_;
  cuda::Event start_{true}, end_{true};
};

/// What `body` launches on `stream`, as a CUDA graph. It must not allocate: call it once before.
class CapturedCall {
 public:
  CapturedCall(const cuda::Stream& stream, const std::function<void()>& body);
  ~CapturedCall();
  CapturedCall(const CapturedCall&) = delete;
  CapturedCall& operator=(const CapturedCall&) = delete;
  void run() const;

 private:
  const cuda::Stream& stream_;
  cudaGraphExec_t graph_ = nullptr;
};

/// Fills out with N(0, stddev^2) by all processor cores; the same for any number of them.
void fill_normal_parallel(std::span<float> out, uint64_t seed, uint32_t array, float stddev);

/// Tokens as a trained RMSNorm leaves them: |h| = sqrt(d), around cluster centres whose popularity
/// follows a Zipf law with exponent 1/2 (cosine to the centre about 0.8). Shape: [count, d]
/// @param groups  0: centres are independent; else as many groups of centres whose cosine is 0.8
Buffer<float> clustered_states(uint64_t seed, int64_t count, int64_t dim, int64_t clusters,
                               int64_t groups = 0);

/// Centroids of experts that have been trained on such states: each is around the centre of one
/// cluster, cosine about 1/3, every centre has about as many. Shape: [count, d]
Buffer<float> clustered_centroids(uint64_t seed, int64_t count, int64_t dim, int64_t clusters,
                                  int64_t groups = 0);

/// Writes a row-major array as a NumPy file. T: float or int32_t. Throws Error(ExitCode::io).
template <class T>
void write_npy(const std::string& path, std::span<const T> data, const std::vector<int64_t>& shape);

nlohmann::json device_json();

}  // namespace airmoe::bench
