#include "comm/base/cuda/device.hpp"
#include "scheduler/cuda/step_numbers.hpp"

namespace airmoe::scheduler::cuda {
namespace {

__global__ void add(const int32_t* count, StepNumbers* numbers) {
  numbers->revived += *count;
}

__global__ void to_float(const int32_t* __restrict__ count, int64_t n, float* __restrict__ out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) out[i] = static_cast<float>(count[i]);
}

__global__ void from_float(const float* __restrict__ in, int64_t n, int32_t* __restrict__ count) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) count[i] = static_cast<int32_t>(in[i]);
}

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>((n + kThreads - 1) / kThreads);
}

}  // namespace

void counts_to_float(const int32_t* count, int64_t n, float* out, cudaStream_t stream) {
  if (n == 0) return;
  to_float<<<blocks_for(n), kThreads, 0, stream>>>(count, n, out);
  AIRMOE_CUDA_LAUNCHED();
}

void counts_from_float(const float* in, int64_t n, int32_t* count, cudaStream_t stream) {
  if (n == 0) return;
  from_float<<<blocks_for(n), kThreads, 0, stream>>>(in, n, count);
  AIRMOE_CUDA_LAUNCHED();
}

void add_revived(const int32_t* count, StepNumbers* numbers, cudaStream_t stream) {
  add<<<1, 1, 0, stream>>>(count, numbers);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda
