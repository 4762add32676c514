#pragma once
// Sums over rows in two stages and a fixed order: gradients of gains and biases. The second stages
// of several sums may wait for each other and share a launch.

#include <cstdint>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"

namespace airmoe::scheduler::cuda {

/// Most blocks that leave partial sums; block b takes rows by a rule that depends on n only.
inline constexpr int64_t kColumnBlocks = 512;

/// Local, asynchronous, on one stream.
class ColumnSums {
 public:
  /// Where `blocks` blocks leave a row of `columns` partial sums each. Valid until the next
  /// partial(), or flush() while sums are collected. Throws Error when collect() made too little
  /// room.
  float* partial(int64_t blocks, int64_t columns);
  /// total[c] += sum over blocks b of partial[b * ld + c], c < columns, in a fixed order; while
  /// sums are collected not before flush().
  void add(const float* partial, int64_t blocks, int64_t columns, int64_t ld, float* total,
           cudaStream_t stream);

  /// From here to flush() sums are collected. Memory: `sums` rows of kColumnBlocks * columns
  /// floats.
  void collect(int64_t sums, int64_t columns);
  /// Adds all that was collected: one launch per 32 sums.
  void flush(cudaStream_t stream);

  int64_t bytes() const { return partial_.capacity_bytes(); }

  /// One sum of the second stage.
  struct Job {
    const float* partial;
    float* total;
    int64_t ld;
    int32_t blocks, columns;
  };

 private:
  airmoe::cuda::DeviceBuffer<float> partial_;
  std::vector<Job> jobs_;
  int64_t used_ = 0;
  bool collecting_ = false;
};

}  // namespace airmoe::scheduler::cuda
