#pragma once
// Forward and backward of both expert paths over a whole Workload.

#include "apps/bench/workload.hpp"
#include "experts/dense_path.hpp"
#include "experts/grouped_path.hpp"

namespace airmoe::bench {

/// Holds outputs and scratch; every call does the work of all tokens.
class ExpertRuns {
 public:
  explicit ExpertRuns(Workload& work);
  void forward_dense();
  void backward_dense();
  void forward_grouped();   ///< with the grouping, which every forward has to build
  void backward_grouped();  ///< forward_grouped() must have run before

 private:
  template <class Body>
  void for_each_block(Body body);

  Workload& work_;
  experts::ExpertTable table_;
  experts::ExpertGradients gradients_;
  Buffer<float> saved_, d_gate_;
  Buffer<double> y_, d_hidden_, quantum_;
  PairGrouping grouping_, block_grouping_;
  experts::DenseWorkspace dense_;
  experts::GroupedWorkspace grouped_;
};

}  // namespace airmoe::bench
