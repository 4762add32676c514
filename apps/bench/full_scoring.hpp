#pragma once
// The baseline of `airmoe-bench layer`: every token is scored against all experts with BLAS, then
// its exact top K run. All experts are on every rank, so it pays no communication.

#include "comm/base/matrix_view.hpp"
#include "experts/dense_path.hpp"
#include "experts/grouped_path.hpp"
#include "router/exact.hpp"

namespace airmoe::bench {

class FullScoring {
 public:
  /// @param unit_centroids  all experts. Shape: [E, d]
  FullScoring(ConstMatrix unit_centroids, const experts::ExpertTable& table, int64_t active);

  /// How the selected experts run: pairs sorted by expert, or the rows of each token on their own.
  enum class Way : uint8_t { by_expert, by_token };

  /// y = sum over the exact top K of gate * expert(hidden). Shapes: [n, d]
  void forward(ConstMatrix hidden, Matrix y, Way way);

 private:
  void by_expert(ConstMatrix hidden);
  void by_token(ConstMatrix hidden);

  ConstMatrix unit_centroids_;
  experts::ExpertTable table_;
  int64_t active_;
  router::ExactTop top_;
  router::ExactWorkspace exact_;
  Buffer<float> gate_;
  Buffer<double> sum_;
  Buffer<int64_t> offset_;
  Buffer<int32_t> in_order_;
  experts::DenseWorkspace dense_;
  PairGrouping grouping_;
  experts::GroupedWorkspace grouped_;
};

}  // namespace airmoe::bench
