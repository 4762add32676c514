#pragma once
// Sums over rows in two stages and a fixed order: gradients of gains and biases.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"

namespace airmoe::scheduler::cuda {

/// Most blocks that leave partial sums; block b takes rows by a rule that depends on n only.
inline constexpr int64_t kColumnBlocks = 512;

struct ColumnSumWorkspace {
  airmoe::cuda::DeviceBuffer<float> partial;  ///< Shape: [blocks, columns]
};

/// Local, asynchronous. total[c] += sum over blocks of partial[b, c], in a fixed order.
/// @param partial  rows are `ld` apart. Shape: [blocks, columns]
void add_column_sums(const float* partial, int64_t blocks, int64_t columns, int64_t ld,
                     float* total, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
