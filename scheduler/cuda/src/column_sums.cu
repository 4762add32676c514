#include "scheduler/cuda/column_sums.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kColumns = 32;
constexpr int kStrips = 32;  // threads that share a column: strip s takes rows s, s + kStrips, ...

__global__ void __launch_bounds__(kColumns* kStrips)
    add_column_sums_kernel(const float* __restrict__ partial, int blocks, int64_t columns,
                           int64_t ld, float* __restrict__ total) {
  __shared__ float strip_sum[kStrips][kColumns + 1];
  const int lane = threadIdx.x % kColumns, strip = threadIdx.x / kColumns;
  const int64_t column = blockIdx.x * static_cast<int64_t>(kColumns) + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int b = strip; b < blocks; b += kStrips) sum += partial[b * ld + column];
  }
  strip_sum[strip][lane] = sum;
  __syncthreads();
  if (strip != 0 || column >= columns) return;
#pragma unroll
  for (int s = 1; s < kStrips; ++s) sum += strip_sum[s][lane];
  total[column] += sum;
}

}  // namespace

void add_column_sums(const float* partial, int64_t blocks, int64_t columns, int64_t ld,
                     float* total, cudaStream_t stream) {
  if (blocks == 0 || columns == 0) return;
  const auto grid = static_cast<unsigned>((columns + kColumns - 1) / kColumns);
  add_column_sums_kernel<<<grid, kColumns * kStrips, 0, stream>>>(partial, static_cast<int>(blocks),
                                                                  columns, ld, total);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda
