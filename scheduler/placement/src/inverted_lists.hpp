#pragma once
// The parts that each expert is a candidate of; of a sample of the experts where lists are many.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

class InvertedLists {
 public:
  /// Leaves out parts without tokens. One expert in `stride` is sampled, by a hash of its id.
  InvertedLists(const PlanInput& input, const Parts& parts, int64_t stride);

  int64_t stride() const { return stride_; }
  bool sampled(int64_t expert) const { return in_sample(expert, stride_); }
  static bool in_sample(int64_t expert, int64_t stride) {
    return stride == 1 ||
           static_cast<int64_t>((static_cast<uint32_t>(expert) * 2654435761u) >> 12) % stride == 0;
  }
  /// Sampled candidates of a part.
  int64_t length(int64_t part) const { return length_[part]; }

  std::span<const int32_t> parts_of(int64_t expert) const {
    return {part_.data() + begin_[expert],
            static_cast<std::size_t>(begin_[expert + 1] - begin_[expert])};
  }
  int64_t count(int64_t expert) const { return begin_[expert + 1] - begin_[expert]; }
  /// Pairs of parts that share a candidate, counted with each shared candidate.
  double pairs() const { return pairs_; }

 private:
  Buffer<int64_t> begin_;
  Buffer<int32_t> part_, length_;
  int64_t stride_;
  double pairs_ = 0;
};

}  // namespace airmoe::scheduler::placement
