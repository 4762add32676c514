#include <algorithm>

#include "scheduler/cuda/column_sums.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kColumns = 32;
constexpr int kStrips = 32;  // threads that share a column: strip s takes rows s, s + kStrips, ...
constexpr int kJobs = 32;    // per launch, as kernel arguments

struct Jobs {
  ColumnSums::Job job[kJobs];
};

// Block (x, y): columns 32 x .. of job y.
__global__ void __launch_bounds__(kColumns* kStrips) add_column_sums_kernel(const Jobs jobs) {
  __shared__ float strip_sum[kStrips][kColumns + 1];
  const ColumnSums::Job& job = jobs.job[blockIdx.y];
  const int lane = threadIdx.x % kColumns, strip = threadIdx.x / kColumns;
  const int column = static_cast<int>(blockIdx.x) * kColumns + lane;
  float sum = 0.0f;
  if (column < job.columns) {
#pragma unroll 8
    for (int b = strip; b < job.blocks; b += kStrips) sum += job.partial[b * job.ld + column];
  }
  strip_sum[strip][lane] = sum;
  __syncthreads();
  if (strip != 0 || column >= job.columns) return;
#pragma unroll
  for (int s = 1; s < kStrips; ++s) sum += strip_sum[s][lane];
  job.total[column] += sum;
}

void launch(const ColumnSums::Job* jobs, int64_t count, cudaStream_t stream) {
  for (int64_t begin = 0; begin < count; begin += kJobs) {
    const int64_t batch = std::min<int64_t>(kJobs, count - begin);
    Jobs arguments{};
    std::copy_n(jobs + begin, batch, arguments.job);
    int32_t widest = 0;
    for (int64_t i = 0; i < batch; ++i) widest = std::max(widest, jobs[begin + i].columns);
    const dim3 grid(static_cast<unsigned>((widest + kColumns - 1) / kColumns),
                    static_cast<unsigned>(batch));
    add_column_sums_kernel<<<grid, kColumns * kStrips, 0, stream>>>(arguments);
    AIRMOE_CUDA_LAUNCHED();
  }
}

}  // namespace

float* ColumnSums::partial(int64_t blocks, int64_t columns) {
  const int64_t size = blocks * columns;
  if (!collecting_) {
    partial_.ensure(size);
    return partial_.data();
  }
  AIRMOE_CHECK(used_ + size <= partial_.size(), "room for {} partial sums, {} wanted",
               partial_.size(), used_ + size);
  used_ += size;
  return partial_.data() + (used_ - size);
}

void ColumnSums::add(const float* partial, int64_t blocks, int64_t columns, int64_t ld,
                     float* total, cudaStream_t stream) {
  if (blocks == 0 || columns == 0) return;
  const Job job{partial, total, ld, static_cast<int32_t>(blocks), static_cast<int32_t>(columns)};
  if (collecting_) {
    jobs_.push_back(job);
  } else {
    launch(&job, 1, stream);
  }
}

void ColumnSums::collect(int64_t sums, int64_t columns) {
  partial_.ensure(sums * kColumnBlocks * columns);
  jobs_.clear();
  used_ = 0;
  collecting_ = true;
}

void ColumnSums::flush(cudaStream_t stream) {
  collecting_ = false;
  launch(jobs_.data(), std::ssize(jobs_), stream);
}

}  // namespace airmoe::scheduler::cuda
