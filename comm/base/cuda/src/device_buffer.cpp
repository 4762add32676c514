#include "comm/base/cuda/device_buffer.hpp"

#include <algorithm>
#include <atomic>

namespace airmoe::cuda {
namespace {

std::atomic<int64_t> now{0};
std::atomic<int64_t> peak{0};

}  // namespace

int64_t device_bytes() {
  return now.load();
}
int64_t device_bytes_peak() {
  return peak.load();
}

namespace detail {

void* allocate(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(ExitCode::failure,
         "CUDA: out of device memory: {:.2f} GB asked, {:.2f} of {:.2f} GB free; use smaller "
         "micro-batches (--accumulate), fewer experts or more devices",
         static_cast<double>(bytes) / 1e9, static_cast<double>(free) / 1e9,
         static_cast<double>(total) / 1e9);
  }
  AIRMOE_CUDA(status);
  const int64_t held = now.fetch_add(bytes) + bytes;
  int64_t most = peak.load();
  while (held > most && !peak.compare_exchange_weak(most, held)) {
  }
  return data;
}

void release(void* data, int64_t bytes) noexcept {
  if (data == nullptr) return;
  cudaFree(data);  // at exit the driver may be gone already: nothing to say then
  now.fetch_sub(bytes);
}

}  // namespace detail
}  // namespace airmoe::cuda
