#pragma once
// Which experts have rows on this rank: those it owns, and copies of others.
//
// The arrays of a layer (unit centroids, up, down, gate_proj and their gradients) have one row per
// resident expert: rows [0, owned()) are the owned experts by ascending id, rows [owned(), rows())
// copies in the order they came. A copy holds parameters only; the owner holds optimizer moments and
// the parameters that count. Copies live for one optimizer step: they are fetched when a shortlist
// needs them, collect gradients over all micro-batches, and give these back to the owner once.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/partition.hpp"
#include "comm/communicator.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/sum_precision.hpp"

namespace airmoe::scheduler {

class ExpertResidency {
 public:
  /// Every rank owns its block of expert ids at first.
  ExpertResidency(comm::Communicator& comm, int64_t experts, SumPrecision sums);

  /// Local, before anything else. A float array that copies receive: one row of `row_size` per
  /// resident expert; grows with rows(). The owner's rows are sent as they are at acquire().
  void add_values(Buffer<float>& array, int64_t row_size);
  /// Local. A double array that copies give back: their rows are added to the owner's.
  void add_gradients(Buffer<double>& array, int64_t row_size);
  /// Local. A float array that only the owner has and that moves with the expert (moments, raw
  /// centroids). Values added with add_values move too.
  void add_owned(Buffer<float>& array, int64_t row_size);

  int64_t experts() const { return std::ssize(home_); }
  int64_t owned() const { return owned_; }
  int64_t rows() const { return std::ssize(expert_of_row_); }
  int64_t copies() const { return rows() - owned_; }
  int home(int32_t expert) const { return home_[expert]; }
  std::span<const int32_t> homes() const { return home_; }
  /// Global ids of the owned experts, ascending; equal to expert_of_row up to owned().
  std::span<const int32_t> owned_experts() const {
    return std::span<const int32_t>(expert_of_row_).first(static_cast<std::size_t>(owned_));
  }
  int32_t expert(int64_t row) const { return expert_of_row_[row]; }
  /// Row of an expert here, or -1.
  int32_t row(int32_t expert) const { return row_of_expert_[expert]; }

  /// Collective. Makes every expert of `ids` resident (any order, repetitions allowed, owned ones
  /// cost nothing); fetches only those that have no row yet. Rows of new copies hold the owner's
  /// values and zero gradients. Phase "copies": to each owner one message of 4 bytes per expert
  /// asked for, from it one row of all value arrays per expert.
  void acquire(std::span<const int32_t> ids);

  /// Local. This micro-batch gave the row a gradient.
  void touch(int32_t row);
  /// Collective. Gradients of touched copies are added to the owner's and set to zero. Phase
  /// "copy_gradients": per touched copy its id (4 bytes) and one row of all gradient arrays, in
  /// double (SumPrecision::f64) or float.
  void return_gradients();
  /// Local. Forgets all copies. Their gradients must have been returned.
  void drop_copies();

  /// Collective. Sums of a per-row count over all holders of each expert: counts of copies among
  /// `rows` are added to the owner's, and every rank's entries in `rows` become the total. Rows not
  /// listed are zero on entry; an owner's row may become nonzero without being listed there: those
  /// are appended to `rows`. Phase "usage": 8 bytes per listed copy there, 4 back.
  void share_counts(Buffer<int32_t>& count, std::vector<int32_t>& rows);

  /// Collective. Makes `home` (the same on all ranks, every rank owning its block's size) the
  /// owners and moves the rows of value and owned arrays, phase "move_experts". There are no copies
  /// and all gradients are zero.
  /// @return experts that moved away from this rank
  int64_t set_homes(std::vector<int32_t> home);
  /// True while every rank owns its block of expert ids.
  bool in_blocks() const { return in_blocks_; }

  /// Collective. Owned rows (of any array with one row per owned expert) by block of expert id:
  /// what files hold. Shape of `out`: [BlockPartition{E, ranks}.size(rank), row_size]
  void to_blocks(const float* rows, int64_t row_size, float* out);
  /// Collective. The way back.
  void from_blocks(const float* blocks, int64_t row_size, float* rows);

 private:
  comm::Communicator& comm_;
};

}  // namespace airmoe::scheduler
