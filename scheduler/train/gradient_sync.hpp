#pragma once
// Data-parallel gradients: the sum over ranks of every replicated parameter's gradient.

#include "comm/base/buffer.hpp"
#include "comm/communicator.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/sum_precision.hpp"

namespace airmoe::scheduler {

/// Packs gradients into buckets, so that small parameters share messages.
class GradientSync {
 public:
  GradientSync(comm::Communicator& comm, SumPrecision precision)
      : comm_(comm), precision_(precision) {}

  /// Collective. gradient = sum over ranks of gradient_sum, in rank order (see
  /// Communicator::all_reduce): the same bits on every rank; the sums are zero again. Parameters
  /// with Sharding::by_expert are left alone. Memory: one bucket of 4 M elements.
  void all_reduce(ParameterSet& parameters);

 private:
  static constexpr int64_t kBucket = int64_t{4} << 20;  // elements
  struct Piece {
    double* sum;
    float* gradient;
    int64_t count;
  };
  template <class T>
  void reduce_pieces(Buffer<T>& bucket, int64_t used);

  comm::Communicator& comm_;
  SumPrecision precision_;
  Buffer<double> bucket_f64_;
  Buffer<float> bucket_f32_;
  std::vector<Piece> pieces_;  // of gradients, in parameter order, at most kBucket elements
};

}  // namespace airmoe::scheduler
