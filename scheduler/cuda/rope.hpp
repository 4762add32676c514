#pragma once
// Rotary position embedding on a device. Specification: scheduler/trunk/rope.hpp.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"

namespace airmoe::scheduler::cuda {

class DeviceRope {
 public:
  /// Local; waits: uploads the table, angles in double as on the host. head_dim is a multiple of 8.
  DeviceRope(int64_t context, int64_t head_dim, float base);

  /// Local, asynchronous, T float or __nv_bfloat16. Turns the first `columns` columns (a multiple
  /// of head_dim) of row t by position t % context, in place.
  /// @param x  rows are `ld` apart, a multiple of 8; 16-byte aligned. Shape: [n, columns]
  template <class T>
  void rotate(T* x, int64_t n, int64_t columns, int64_t ld, cudaStream_t stream) const {
    turn(x, n, columns, ld, 1.0f, stream);
  }
  /// The inverse, which is also the gradient of rotate().
  template <class T>
  void rotate_back(T* x, int64_t n, int64_t columns, int64_t ld, cudaStream_t stream) const {
    turn(x, n, columns, ld, -1.0f, stream);
  }

 private:
  template <class T>
  void turn(T* x, int64_t n, int64_t columns, int64_t ld, float direction,
            cudaStream_t stream) const;

  int64_t context_, head_dim_;
  airmoe::cuda::DeviceBuffer<float> table_;  // cosine and sine of a pair. [context, head_dim]
};

}  // namespace airmoe::scheduler::cuda
