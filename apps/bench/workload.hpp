#pragma once
// Synthetic routing work of one rank: codewords with random shortlists over a table of experts, the
// same number of tokens each, and the top K of every token. Values are random normal numbers, which
// says nothing about the quality of routing, only about time.

#include <cstdint>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/panel.hpp"
#include "comm/base/selection.hpp"
#include "experts/expert_table.hpp"

namespace airmoe::bench {

struct WorkloadShape {
  int64_t experts = 65536;   ///< E
  int64_t dim = 256;         ///< d
  int64_t expert_dim = 1;    ///< m
  int64_t shortlist = 2048;  ///< M
  int64_t active = 512;      ///< K
  int64_t tokens = 64;       ///< per codeword
  int64_t codewords = 8;     ///< G
  uint64_t seed = 1;
  experts::ExpertActivation activation = experts::ExpertActivation::gelu;

  int64_t all_tokens() const { return codewords * tokens; }
  int64_t pairs() const { return all_tokens() * active; }
  /// Throws Error(ExitCode::config) unless K <= M <= E.
  void validate() const;
};

class Workload {
 public:
  explicit Workload(const WorkloadShape& shape);

  const WorkloadShape& shape() const { return shape_; }
  ConstMatrix centroid() const { return {centroid_.data(), shape_.experts, shape_.dim}; }
  experts::ExpertTable table() const;
  /// Gradients of the table; allocated at the first call.
  experts::ExpertGradients gradients();

  /// Arrays over all tokens, sorted by codeword. Shape: [G * tokens, d]
  ConstMatrix hidden() const { return {hidden_.data(), shape_.all_tokens(), shape_.dim}; }
  ConstMatrix d_output() const { return {d_output_.data(), shape_.all_tokens(), shape_.dim}; }
  ConstMatrix hidden(int64_t codeword) const {
    return hidden().slice_rows(codeword * shape_.tokens, shape_.tokens);
  }
  const int32_t* candidates(int64_t codeword) const {
    return candidates_.data() + codeword * shape_.shortlist;
  }
  /// Centroids of a codeword's shortlist.
  ConstPanel panel(int64_t codeword) const {
    return {centroid_.data(), candidates(codeword), shape_.shortlist, shape_.dim, shape_.dim};
  }
  /// Pairs of one codeword's tokens; positions index its candidates.
  SelectionView selection(int64_t codeword) const;
  /// Pairs of all tokens; positions are rows of the table.
  SelectionView selection() const;

 private:
  WorkloadShape shape_;
  Buffer<float> centroid_, up_, down_, gate_proj_;
  Buffer<double> d_up_, d_down_, d_gate_proj_;
  Buffer<float> hidden_, d_output_, gate_;
  Buffer<int32_t> candidates_, position_, expert_;
  Buffer<int64_t> offset_;
};

}  // namespace airmoe::bench
