#pragma once
// Data-parallel gradients: the sum over ranks of every replicated parameter's gradient.

#include "comm/base/buffer.hpp"
#include "comm/communicator.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler {

/// Packs gradients into buckets, so that small parameters share messages.
class GradientSync {
 public:
  explicit GradientSync(comm::Communicator& comm) : comm_(comm) {}

  /// Collective. Sums in rank order (see Communicator::all_reduce): the same bits on every rank.
  /// Parameters with Sharding::by_expert are left alone. Memory: one bucket of 16 MiB.
  void all_reduce(ParameterSet& parameters);

 private:
  static constexpr int64_t kBucket = int64_t{4} << 20;  // elements
  struct Piece {
    float* data;
    int64_t count;
  };

  comm::Communicator& comm_;
  Buffer<float> bucket_;
  std::vector<Piece> pieces_;  // of gradients, in parameter order, at most kBucket elements
};

}  // namespace airmoe::scheduler
