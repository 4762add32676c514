#include "comm/base/cuda/device.hpp"

#include <map>
#include <mutex>

namespace airmoe::cuda {

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  fail(ExitCode::failure, "CUDA: {} ({}): {} at {}:{}", cudaGetErrorString(status),
       cudaGetErrorName(status), call, file, line);
}

int device_count(std::string* reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  if (reason != nullptr && count == 0) {
    *reason = status == cudaSuccess ? "no CUDA device" : cudaGetErrorString(status);
  }
  return count;
}

void use_device(int device) {
  std::string reason;
  const int count = device_count(&reason);
  if (device < 0 || device >= count) {
    fail(ExitCode::config, "CUDA device {} does not exist: {}", device,
         count == 0 ? reason : fmt::format("there are {}", count));
  }
  AIRMOE_CUDA(cudaSetDevice(device));
  const DeviceProperties& properties = device_properties();
  if (properties.compute_capability < 80) {
    fail(ExitCode::config, "CUDA device {} is {} with compute capability {}.{}: 8.0 is the least",
         device, properties.name, properties.compute_capability / 10,
         properties.compute_capability % 10);
  }
}

const DeviceProperties& device_properties() {
  static std::mutex mutex;
  static std::map<int, DeviceProperties> known;
  int device = 0;
  AIRMOE_CUDA(cudaGetDevice(&device));
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  cudaDeviceProp p{};
  AIRMOE_CUDA(cudaGetDeviceProperties(&p, device));
  DeviceProperties& properties = known[device];
  properties.name = p.name;
  properties.compute_capability = p.major * 10 + p.minor;
  properties.multiprocessors = p.multiProcessorCount;
  properties.memory_bytes = static_cast<int64_t>(p.totalGlobalMem);
  properties.l2_bytes = p.l2CacheSize;
  properties.shared_bytes_per_block = static_cast<int64_t>(p.sharedMemPerBlockOptin);
  return properties;
}

}  // namespace airmoe::cuda
