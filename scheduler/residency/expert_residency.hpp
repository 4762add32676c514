#pragma once
// Which experts have rows on this rank: those it owns, and copies of others.
//
// The arrays of a layer (unit centroids, up, down, gate_proj and their gradients) have one row per
// resident expert: rows [0, owned()) are the owned experts by ascending id, rows [owned(), rows())
// copies in the order they came. A copy holds parameters only; the owner holds optimizer moments
// and the parameters that count. Copies live for one optimizer step: they are fetched when a
// shortlist needs them, collect gradients over all micro-batches, and give these back to the owner
// once.
//
// Memory beside the arrays: 8 bytes per expert of all ranks; and messages, kept from step to step:
// a row of values per copy that is fetched at once and per one that others fetch here, a row of
// gradients per touched copy and per one that others return here.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/partition.hpp"
#include "comm/communicator.hpp"
#include "scheduler/residency/owner_exchange.hpp"
#include "scheduler/sum_precision.hpp"

namespace airmoe::scheduler {

class ExpertResidency {
 public:
  /// Every rank owns its block of expert ids at first.
  ExpertResidency(comm::Communicator& comm, int64_t experts, SumPrecision sums);
  ExpertResidency(const ExpertResidency&) = delete;
  ExpertResidency& operator=(const ExpertResidency&) = delete;

  /// Local, before anything else; the array must hold owned() rows and outlive this object. A float
  /// array that copies receive: one row of `row_size` per resident expert. The owner's rows are
  /// sent as they are at acquire(). Arrays of values and gradients always have rows() rows: those
  /// of owned experts keep their contents, but acquire() may move an array in memory, which makes
  /// pointers and views taken before it void.
  /// @param when  at_once: with acquire(); when_used: with fetch_used(), for what only selected
  ///              candidates need
  enum class Fetch : uint8_t { at_once, when_used };
  void add_values(Buffer<float>& array, int64_t row_size, Fetch when = Fetch::at_once);
  /// Local. A double array that copies give back: their rows are added to the owner's.
  void add_gradients(Buffer<double>& array, int64_t row_size);
  /// Local. A float array that only the owner has and that moves with the expert (moments, raw
  /// centroids). Values added with add_values move too.
  void add_owned(Buffer<float>& array, int64_t row_size);

  int64_t experts() const { return std::ssize(home_); }
  int64_t owned() const { return owned_; }
  /// Experts with a row here: owned ones and copies.
  int64_t rows() const { return std::ssize(expert_of_row_); }
  int64_t copies() const { return rows() - owned_; }
  /// Rank that owns the expert.
  int home(int32_t expert) const { return home_[expert]; }
  std::span<const int32_t> homes() const { return home_; }
  /// Global ids of the owned experts, ascending; equal to expert_of_row up to owned().
  std::span<const int32_t> owned_experts() const {
    return std::span<const int32_t>(expert_of_row_).first(static_cast<std::size_t>(owned_));
  }
  int32_t expert(int64_t row) const { return expert_of_row_[row]; }
  /// Row of an expert here, or -1. A copy being fetched has its row from begin_acquire() on.
  int32_t row(int32_t expert) const { return row_of_expert_[expert]; }

  /// Collective. Makes every expert of `ids` resident (any order, repetitions allowed, owned ones
  /// cost nothing); fetches only those that have no row yet. Rows of new copies hold the owner's
  /// values and zero gradients. Phase "copies": to each owner one message of 4 bytes per expert
  /// asked for, from it one row of all value arrays per expert that are fetched at once.
  void acquire(std::span<const int32_t> ids) {
    begin_acquire(ids);
    finish_acquire();
  }
  /// The same in two halves, with work and other messages in between: begin_acquire() is
  /// collective, copies the owners' values and starts their way; finish_acquire() is local, waits,
  /// and fills in the new rows, whose values (not their gradients) are undefined until then.
  void begin_acquire(std::span<const int32_t> ids);
  void finish_acquire();

  /// Local: whether the row's arrays that are fetched when used are still to come.
  bool lacks_values(int32_t row) const {
    return row >= owned_ && !late_.empty() &&
           complete_[static_cast<std::size_t>(row - owned_)] == 0;
  }
  /// Collective. Fetches the remaining arrays of these rows (any order, repetitions allowed; those
  /// that lack nothing cost nothing). Phase "copies": bytes as for acquire().
  void fetch_used(std::span<const int32_t> rows);

  /// Local. This micro-batch gave the row a gradient. Nothing for an owned row.
  void touch(int32_t row) {
    if (row < owned_ || touched_[static_cast<std::size_t>(row - owned_)] != 0) return;
    touched_[static_cast<std::size_t>(row - owned_)] = 1;
    touched_experts_.push_back(expert_of_row_[static_cast<std::size_t>(row)]);
  }
  /// Local: copies touched since the last return_gradients().
  int64_t touched_copies() const { return std::ssize(touched_experts_); }
  /// Collective. Gradients of touched copies are added to the owner's and set to zero. Phase
  /// "copy_gradients": per touched copy its id (4 bytes) and one row of all gradient arrays, in
  /// double (SumPrecision::f64) or float. Added in the order of ranks, the owner's own first.
  void return_gradients();
  /// Local. Forgets all copies. Their gradients must have been returned.
  void drop_copies();

  /// Collective. Sums of a per-row count over all holders of each expert: counts of copies among
  /// `rows` are added to the owner's, and every rank's entries in `rows` become the total. Rows not
  /// listed are zero on entry; an owner's row may become nonzero without being listed there: those
  /// are appended to `rows`. Phase "usage": 8 bytes per listed copy there, 4 back. `count` has at
  /// least rows() elements; no row is listed twice.
  void share_counts(Buffer<int32_t>& count, std::vector<int32_t>& rows);

  /// Collective. Makes `home` (the same on all ranks, every rank owning its block's size) the
  /// owners and moves the rows of value and owned arrays, phase "move_experts". There are no copies
  /// and all gradients are zero.
  /// Work O(E). Scratch, freed before it returns: the rows of one array that leave and arrive.
  /// @return experts that moved away from this rank
  int64_t set_homes(std::vector<int32_t> home);
  /// Local. Every rank owns its block again and no row moves: for a caller that fills in all rows
  /// of all arrays by expert id (restore). There are no copies.
  void reset_homes();
  /// True while every rank owns its block of expert ids.
  bool in_blocks() const { return in_blocks_; }

  /// Collective. Owned rows (of any array with one row per owned expert) by block of expert id:
  /// what files hold. Phase "to_blocks" or "from_blocks": 4 row_size bytes per owned expert of
  /// another rank's block. There may be copies. `rows` and `out` do not overlap.
  /// Shape of `out`: [BlockPartition{E, ranks}.size(rank), row_size]
  void to_blocks(const float* rows, int64_t row_size, float* out);
  /// Collective. The way back.
  void from_blocks(const float* blocks, int64_t row_size, float* rows);

 private:
  template <class T>
  struct RowArray {
    Buffer<T>* buffer;
    int64_t row_size;
    T* row(int64_t i) const { return buffer->data() + i * row_size; }
  };
  struct MoveScratch {
    Buffer<float> out, in;
  };
  template <class T>
  void add(std::vector<RowArray<T>>& arrays, Buffer<T>& array, int64_t row_size);
  template <class T>
  static int64_t width(const std::vector<RowArray<T>>& arrays);
  void take_blocks();
  void index_owned();
  void add_missing_rows(std::span<const int32_t> ids);
  comm::Ticket send_values(OwnerExchange& round, const std::vector<RowArray<float>>& arrays);
  void take_values(const OwnerExchange& round, const std::vector<RowArray<float>>& arrays);
  void resize_arrays(int64_t rows);
  int32_t owned_row(int32_t expert) const;
  template <class T>
  void return_rows(Buffer<T>& out, Buffer<T>& in);
  void move_rows(const RowArray<float>& array, std::span<const int32_t> old_home,
                 std::span<const int32_t> old_experts, MoveScratch& scratch);

  comm::Communicator& comm_;
  SumPrecision sums_;
  BlockPartition blocks_;
  std::vector<RowArray<float>> values_, early_, late_, owned_arrays_;  // early_ + late_ = values_
  std::vector<RowArray<double>> gradients_;

  std::vector<int32_t> home_;           // [E]
  std::vector<int32_t> row_of_expert_;  // [E], -1: not here
  std::vector<int32_t> expert_of_row_;  // [rows()]
  int64_t owned_ = 0;
  bool in_blocks_ = true;

  OwnerExchange fetch_, give_;
  bool acquiring_ = false;
  std::vector<int32_t> missing_;          // asked for by begin_acquire
  std::vector<uint8_t> touched_;          // [copies()]
  std::vector<uint8_t> complete_;         // [copies()]: late_ has come or is asked for
  std::vector<int32_t> touched_experts_;  // copies with touched_
  Buffer<float> value_out_, value_in_, float_out_, float_in_;
  Buffer<double> gradient_out_, gradient_in_;
  std::vector<int32_t> counted_, words_;
  Buffer<int32_t> totals_out_, totals_in_;
  std::vector<uint8_t> listed_;  // [rows()], zero between calls
  comm::Ticket fetching_;        // last: it ends before its memory does
};

}  // namespace airmoe::scheduler
