#pragma once
// The parts that each expert is a candidate of.

#include <cstdint>
#include <span>

#include "comm/base/buffer.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

class InvertedLists {
 public:
  /// Leaves out parts without tokens.
  InvertedLists(const PlanInput& input, const Parts& parts);

  std::span<const int32_t> parts_of(int64_t expert) const {
    return {part_.data() + begin_[expert],
            static_cast<std::size_t>(begin_[expert + 1] - begin_[expert])};
  }
  int64_t count(int64_t expert) const { return begin_[expert + 1] - begin_[expert]; }
  /// Pairs of parts that share a candidate, counted with each shared candidate.
  double pairs() const { return pairs_; }

 private:
  Buffer<int64_t> begin_;
  Buffer<int32_t> part_;
  double pairs_ = 0;
};

}  // namespace airmoe::scheduler::placement
