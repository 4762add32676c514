#pragma once
// Start and end of the message library, so that programs and tests need no mpi.h.

namespace airmoe::comm {

/// One per process, made first thing in main(), destroyed last.
class MpiEnvironment {
 public:
  /// Collective over all ranks. Starts MPI; MPI calls are made from this thread only.
  MpiEnvironment(int* argc, char*** argv);
  /// Collective. Ends MPI; when it is left by an exception, ends all ranks instead of waiting for
  /// them.
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// Local: place among all ranks of the run, and their number.
  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Collective over all ranks: the largest `value`. For exit codes; has no deadline.
  int max_over_ranks(int value) const;

  /// For ranks that failed: waits until every rank has called this, at most `seconds`. True: all
  /// ranks failed (together, since an error like a bad option shows everywhere) and can leave in
  /// order. False: some are still at work or stuck waiting for this one; abort_all() is the way
  /// out.
  bool all_ranks_arrive(double seconds) const;

  /// Local: ends every rank with `code`. Works before, during and after MPI's life.
  [[noreturn]] static void abort_all(int code);

 private:
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace airmoe::comm
