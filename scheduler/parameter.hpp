#pragma once
// A trainable array with its gradient and optimizer moments, and how it is spread over ranks.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/processors.hpp"

namespace airmoe::scheduler {

/// replicated: every rank holds all rows, gradients are all-reduced (data parallel).
/// by_expert: rank r owns rows [rows.begin(r), rows.end(r)) of dimension 0 (expert id); gradients
/// are complete on the owner and are never all-reduced.
enum class Sharding : uint8_t { replicated, by_expert };

/// All arrays exist from the start, but of large ones only the values take memory: gradients, their
/// sums and moments are zero pages until somebody writes to them (buffer.hpp). On a device, which
/// has its own, the host's gradients and sums never do.
struct Parameter {
  std::string name;            ///< path in a checkpoint, for example /layers/02/moe/centroid
  std::vector<int64_t> shape;  ///< global shape
  Sharding sharding = Sharding::replicated;
  int64_t row_begin = 0;  ///< first global row held here (0 when replicated)
  int64_t row_count = 0;  ///< rows held here
  bool decay = true;      ///< weight decay applies (matrices yes, norm gains and biases no)
  int64_t threads = 1;    ///< that may fill the array at once
  Buffer<float> value, gradient, moment1, moment2;
  /// Exact sum of gradients over the optimizer step (comm/base/exact_sum.hpp), so that the total
  /// does not depend on which rank computed which part. Replicated: of the gradients of single
  /// sequences. By expert: what the backward adds to; it may hold more rows than row_count, which
  /// are copies of other ranks' experts and stand behind the rows that are owned.
  Buffer<double> gradient_sum;

  /// Ends one sequence: adds gradient to gradient_sum and sets gradient to zero. Replicated only.
  void fold_gradient();
  /// Local, O(local_size()): gradient = gradient_sum of the rows held here, whose sums are zero
  /// again.
  void unfold_gradient();

  int64_t row_size() const {
    int64_t n = 1;
    for (std::size_t i = 1; i < shape.size(); ++i) n *= shape[i];
    return n;
  }
  int64_t local_size() const { return row_count * row_size(); }
  /// Local rows as a matrix [row_count, row_size()].
  Matrix values() { return {value.data(), row_count, row_size()}; }
  ConstMatrix values() const { return {value.data(), row_count, row_size()}; }
  Matrix gradients() { return {gradient.data(), row_count, row_size()}; }
  /// All rows of gradient_sum, copies included.
  MatrixView<double> gradient_sums() {
    return {gradient_sum.data(), gradient_sum.size() / row_size(), row_size()};
  }
};

/// Owns parameters in creation order, which is the order of every loop over them. Addresses are
/// stable.
class ParameterSet {
 public:
  /// @param threads  of this process that may fill an array at once
  explicit ParameterSet(int64_t threads = allowed_processors()) : threads_(threads) {}

  /// Adds an array held in full by every rank. Values are uninitialised, gradient and moments zero.
  Parameter& add_replicated(std::string name, std::vector<int64_t> shape, bool decay);
  /// Adds an array whose rows are experts; this rank holds part `rank` of `experts`.
  Parameter& add_by_expert(std::string name, std::vector<int64_t> shape, BlockPartition experts,
                           int64_t rank, bool decay);

  std::vector<std::unique_ptr<Parameter>>& all() { return parameters_; }
  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  void zero_gradients();
  /// Local: unfold_gradient() of replicated parameters. What GradientSync does, for one rank.
  void unfold_gradients();

 private:
  Parameter& add(std::string name, std::vector<int64_t> shape, bool decay);

  int64_t threads_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
};

/// Fills the local rows with N(0, stddev^2) keyed by (seed, name, global element index): the same
/// values whatever the rank count. Local; parts of large arrays in parameter.threads threads, which
/// are the first to touch them.
void initialise_normal(Parameter& parameter, uint64_t seed, float stddev);

}  // namespace airmoe::scheduler
