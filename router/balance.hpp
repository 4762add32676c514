#pragma once
// Switch-style balance loss over the selected: weight * E * sum_e f_e P_e, f_e = share of
// selections of expert e among T * K, P_e = mean gate of expert e over T tokens; f is not
// differentiated.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"

namespace airmoe::router {

/// Counts and gate sums of local experts for one micro-batch, and usage over a longer window.
class ExpertUsage {
 public:
  /// The window counts these; rows behind them (copies) come with resize().
  explicit ExpertUsage(int64_t local_experts);
  /// Local: room for at least this many rows; those added count from zero.
  void resize(int64_t rows);

  /// Forgets the micro-batch; O(experts touched), not O(local experts).
  void begin_micro_batch();
  /// Adds pairs (local expert, gate).
  void add(const int32_t* expert, const float* gate, int64_t pairs);
  /// Selections of a local expert in this micro-batch.
  int32_t count(int32_t expert) const { return count_[expert]; }
  /// The same by row, and the rows that are not zero, to be completed with the selections of other
  /// ranks: rows may be added to touched(), each once.
  Buffer<int32_t>& counts() { return count_; }
  std::vector<int32_t>& touched() { return touched_; }
  /// sum over local experts of count * gate sum, in double, in ascending expert id.
  double count_gate_product();
  /// Pairs added in this micro-batch.
  int64_t pairs() const { return pairs_; }

  /// Ends the micro-batch: adds its counts to the window, once. count() and the sums stay readable;
  /// the next add() must follow a begin_micro_batch(), which flushes by itself where needed.
  void flush();
  /// Selections per local expert since begin_window(), flushed micro-batches only.
  std::span<const int64_t> window() const { return window_.span(); }
  std::span<int64_t> window() { return window_.span(); }
  /// Forgets the flushed micro-batches.
  void begin_window();

 private:
  Buffer<int32_t> count_;
  std::vector<int32_t> touched_;
  Buffer<double> gate_sum_;
  Buffer<int64_t> window_;
  int64_t pairs_ = 0;
  bool flushed_ = false;
};

}  // namespace airmoe::router
