#include "comm/base/cuda/device.hpp"
#include "scheduler/cuda/step_numbers.hpp"

namespace airmoe::scheduler::cuda {
namespace {

__global__ void add(const int32_t* count, StepNumbers* numbers) {
  numbers->revived += *count;
}

}  // namespace

void add_revived(const int32_t* count, StepNumbers* numbers, cudaStream_t stream) {
  add<<<1, 1, 0, stream>>>(count, numbers);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda
