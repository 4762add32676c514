#include "apps/bench/gpu_timing.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "comm/base/in_parallel.hpp"
#include "comm/base/partition.hpp"
#include "comm/base/random.hpp"
#include "scheduler/processors.hpp"

namespace airmoe::bench {

DeviceTimer::DeviceTimer(const cuda::Stream& stream, int64_t warm_up, int64_t repetitions)
    : stream_(stream),
      warm_up_(warm_up),
      repetitions_(repetitions),
      flush_(2 * cuda::device_properties().l2_bytes) {}

DeviceTiming DeviceTimer::measure(const std::function<void(int64_t)>& body) {
  std::vector<double> times;
  for (int64_t i = -warm_up_; i < repetitions_; ++i) {
    AIRMOE_CUDA(cudaMemsetAsync(flush_.data(), static_cast<int>(i & 127), flush_.bytes(), stream_));
    start_.record(stream_);
    body(i + warm_up_);
    end_.record(stream_);
    end_.synchronize();
    if (i >= 0) times.push_back(end_.milliseconds_since(start_));
  }
  std::sort(times.begin(), times.end());
  DeviceTiming t;
  t.repetitions = repetitions_;
  t.least = times.front();
  t.median = times[times.size() / 2];
  t.p90 = times[times.size() * 9 / 10];
  return t;
}

CapturedCall::CapturedCall(const cuda::Stream& stream, const std::function<void()>& body)
    : stream_(stream) {
  AIRMOE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  body();
  cudaGraph_t graph = nullptr;
  AIRMOE_CUDA(cudaStreamEndCapture(stream, &graph));
  AIRMOE_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
  AIRMOE_CUDA(cudaGraphDestroy(graph));
}

CapturedCall::~CapturedCall() {
  cudaGraphExecDestroy(graph_);
}

void CapturedCall::run() const {
  AIRMOE_CUDA(cudaGraphLaunch(graph_, stream_));
}

void fill_normal_parallel(std::span<float> out, uint64_t seed, uint32_t array, float stddev) {
  const RandomStream stream(seed, Purpose::test_data, array);
  const int64_t threads = scheduler::allowed_processors();
  const BlockPartition parts{std::ssize(out), threads};
  in_parallel(threads, threads, [&](int64_t part) {
    stream.fill_normal(out.data() + parts.begin(part), parts.size(part),
                       static_cast<uint64_t>(parts.begin(part)), stddev);
  });
}

namespace {

// The same for states and centroids. Shape: [clusters, d]
Buffer<float> cluster_centres(uint64_t seed, int64_t dim, int64_t clusters, int64_t groups) {
  Buffer<float> centres(clusters * dim), common(groups * dim);
  fill_normal_parallel(centres.span(), seed, 1, groups > 0 ? std::sqrt(0.2f) : 1.0f);
  if (groups == 0) return centres;
  fill_normal_parallel(common.span(), seed, 12, std::sqrt(0.8f));
  for (int64_t c = 0; c < clusters; ++c) {
    for (int64_t k = 0; k < dim; ++k) centres[c * dim + k] += common[c % groups * dim + k];
  }
  return centres;
}

}  // namespace

Buffer<float> clustered_states(uint64_t seed, int64_t count, int64_t dim, int64_t clusters,
                               int64_t groups) {
  const Buffer<float> centres = cluster_centres(seed, dim, clusters, groups);
  Buffer<float> states(count * dim);
  fill_normal_parallel(states.span(), seed, 2, 0.75f);
  std::vector<double> cumulative(static_cast<std::size_t>(clusters));
  double total = 0;
  for (int64_t c = 0; c < clusters; ++c) {
    total += 1.0 / std::sqrt(static_cast<double>(c + 1));
    cumulative[static_cast<std::size_t>(c)] = total;
  }
  const RandomStream pick(seed, Purpose::test_data, 3);
  for (int64_t t = 0; t < count; ++t) {
    const double u = pick.uniform(static_cast<uint64_t>(t)) * total;
    const auto cluster = static_cast<int64_t>(
        std::lower_bound(cumulative.begin(), cumulative.end(), u) - cumulative.begin());
    const float* centre = centres.data() + std::min(cluster, clusters - 1) * dim;
    float* h = states.data() + t * dim;
    double square = 0;
    for (int64_t k = 0; k < dim; ++k) {
      h[k] += centre[k];
      square += static_cast<double>(h[k]) * h[k];
    }
    const auto scale = static_cast<float>(std::sqrt(static_cast<double>(dim) / square));
    for (int64_t k = 0; k < dim; ++k) h[k] *= scale;
  }
  return states;
}

Buffer<float> clustered_centroids(uint64_t seed, int64_t count, int64_t dim, int64_t clusters,
                                  int64_t groups) {
  constexpr float kCloseness = 0.35f;
  const Buffer<float> centres = cluster_centres(seed, dim, clusters, groups);
  Buffer<float> centroids(count * dim);
  fill_normal_parallel(centroids.span(), seed, 10, 1.0f);
  const RandomStream pick(seed, Purpose::test_data, 11);
  for (int64_t e = 0; e < count; ++e) {
    const double u = pick.uniform(static_cast<uint64_t>(e));
    const auto cluster = static_cast<int64_t>(u * static_cast<double>(clusters));
    const float* centre = centres.data() + std::min(cluster, clusters - 1) * dim;
    float* row = centroids.data() + e * dim;
    for (int64_t k = 0; k < dim; ++k) row[k] += kCloseness * centre[k];
  }
  return centroids;
}

template <class T>
void write_npy(const std::string& path, std::span<const T> data,
               const std::vector<int64_t>& shape) {
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}",
                  std::is_same_v<T, float> ? "<f4" : "<i4", fmt::join(shape, ", "));
  constexpr std::size_t kPreamble = 10;
  header.resize((kPreamble + header.size() + 1 + 63) / 64 * 64 - kPreamble - 1, ' ');
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << header;
  file.write(reinterpret_cast<const char*>(data.data()),
             static_cast<std::streamsize>(data.size_bytes()));
  file.close();
  if (!file) fail(ExitCode::io, "--export: cannot write {}", path);
}
template void write_npy<float>(const std::string&, std::span<const float>,
                               const std::vector<int64_t>&);
template void write_npy<int32_t>(const std::string&, std::span<const int32_t>,
                                 const std::vector<int64_t>&);

nlohmann::json device_json() {
  const cuda::DeviceProperties& p = cuda::device_properties();
  return {{"name", p.name},
          {"compute_capability", p.compute_capability},
          {"multiprocessors", p.multiprocessors},
          {"memory_bytes", p.memory_bytes}};
}

}  // namespace airmoe::bench
