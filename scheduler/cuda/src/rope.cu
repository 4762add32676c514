#include <cmath>
#include <vector>

#include "comm/base/cuda/stream.hpp"
#include "scheduler/cuda/rope.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;

// A thread turns four pairs of one row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(T* __restrict__ x, uint32_t total, uint32_t octets, int64_t ld, uint32_t context,
                uint32_t head_dim, float direction, const float* __restrict__ table) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total) return;
  const uint32_t row = index / octets;
  const uint32_t column = (index - row * octets) * 8;
  const uint32_t position = row % context;
  float value[8], turn[8];
  T* at = x + static_cast<int64_t>(row) * ld + column;
  load8(at, value);
  load8(table + position * static_cast<int64_t>(head_dim) + column % head_dim, turn);
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    const float even = value[i], odd = value[i + 1];
    const float cosine = turn[i], sine = turn[i + 1] * direction;
    value[i] = even * cosine - odd * sine;
    value[i + 1] = odd * cosine + even * sine;
  }
  store8(at, value);
}

}  // namespace

DeviceRope::DeviceRope(int64_t context, int64_t head_dim, float base)
    : context_(context), head_dim_(head_dim) {
  if (head_dim % 8 != 0) {
    fail(ExitCode::config,
         "--dim over --heads gives heads of width {}: on a device it is a multiple of 8, choose "
         "--dim or --heads so",
         head_dim);
  }
  std::vector<float> table(static_cast<std::size_t>(context * head_dim));
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double exponent = -static_cast<double>(i) / static_cast<double>(head_dim);
    const double frequency = std::pow(static_cast<double>(base), exponent);
    for (int64_t t = 0; t < context; ++t) {
      const double angle = static_cast<double>(t) * frequency;
      const auto at = static_cast<std::size_t>(t * head_dim + i);
      table[at] = static_cast<float>(std::cos(angle));
      table[at + 1] = static_cast<float>(std::sin(angle));
    }
  }
  const airmoe::cuda::Stream stream;
  table_.upload(table, stream);
  stream.synchronize();
}

template <class T>
void DeviceRope::turn(T* x, int64_t n, int64_t columns, int64_t ld, float direction,
                      cudaStream_t stream) const {
  AIRMOE_CHECK(columns % head_dim_ == 0, "{} columns are not heads of {}", columns, head_dim_);
  const int64_t octets = columns / 8, total = n * octets;
  if (total == 0) return;
  AIRMOE_CHECK(total < int64_t{1} << 31, "{} rows of {} columns are too many", n, columns);
  const auto blocks = static_cast<unsigned>((total + kThreads - 1) / kThreads);
  turn_kernel<<<blocks, kThreads, 0, stream>>>(
      x, static_cast<uint32_t>(total), static_cast<uint32_t>(octets), ld,
      static_cast<uint32_t>(context_), static_cast<uint32_t>(head_dim_), direction, table_.data());
  AIRMOE_CUDA_LAUNCHED();
}

template void DeviceRope::turn(float*, int64_t, int64_t, int64_t, float, cudaStream_t) const;
template void DeviceRope::turn(__nv_bfloat16*, int64_t, int64_t, int64_t, float,
                               cudaStream_t) const;

}  // namespace airmoe::scheduler::cuda
