#pragma once
// Division by a number that is the same for a whole kernel, as one multiplication.

#include <cstdint>

#ifdef __CUDACC__
#define AIRMOE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AIRMOE_HOST_DEVICE inline
#endif

namespace airmoe::cuda {

/// x / divisor and x % divisor for 0 <= x < kLimit and 1 <= divisor <= 65,536.
class Divider {
 public:
  static constexpr int64_t kLimit = int64_t{1} << 24;

  Divider() = default;
  explicit Divider(int64_t divisor)
      : divisor_(static_cast<int32_t>(divisor)),
        factor_(((uint64_t{1} << 40) + static_cast<uint64_t>(divisor) - 1) /
                static_cast<uint64_t>(divisor)) {}

  AIRMOE_HOST_DEVICE int divide(int x) const {
    return static_cast<int>((static_cast<uint64_t>(x) * factor_) >> 40);
  }
  AIRMOE_HOST_DEVICE int remainder(int x) const { return x - divide(x) * divisor_; }
  AIRMOE_HOST_DEVICE int divisor() const { return divisor_; }

 private:
  int32_t divisor_ = 1;
  uint64_t factor_ = uint64_t{1} << 40;  // 2^40 / divisor, rounded up
};

}  // namespace airmoe::cuda
