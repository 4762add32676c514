#pragma once
// Which tokens of a trace each rank holds in each micro-batch of an optimizer
// step. A large batch is made from a small trace by taking its tokens many
// times.

#include <cstdint>
#include <span>
#include <vector>

namespace airmoe::scheduler {

/// Trace tokens [begin, begin + count), one after the other.
struct TokenRun {
  int64_t begin = 0;
  int64_t count = 0;
  bool operator==(const TokenRun&) const = default;
};

class TokenSpread {
 public:
  /// Local. Tokens live where `home_rank` says, in trace order; micro-batch u is the u-th block of
  /// the trace. Throws Error(ExitCode::bad_data) when a home rank is not below `ranks`.
  static TokenSpread recorded(std::span<const int32_t> home_rank, int ranks, int micro_batches);
  /// Local. Every token once: micro-batch u is the u-th block of the trace, and
  /// in it every rank has a contiguous block, as in training.
  static TokenSpread even(int64_t tokens, int ranks, int micro_batches);
  /// Local. `per_rank` tokens on every rank and micro-batch: the trace cut into
  /// sequences of `sequence` tokens, repeated, in an order drawn from `seed`.
  /// So each sequence occurs equally often (by at most one), and a rank holds a
  /// random choice of whole sequences.
  static TokenSpread tiled(int64_t tokens, int ranks, int64_t per_rank, int64_t sequence,
                           uint64_t seed, int micro_batches);

  int ranks() const { return ranks_; }
  int micro_batches() const { return micro_batches_; }
  std::span<const TokenRun> runs(int micro_batch, int rank) const {
    const int64_t i = static_cast<int64_t>(micro_batch) * ranks_ + rank;
    return {runs_.data() + begin_[i], static_cast<std::size_t>(begin_[i + 1] - begin_[i])};
  }
  std::span<const TokenRun> all_runs() const { return runs_; }
  /// Of all ranks and micro-batches.
  int64_t tokens() const;
  /// Calls visit(trace token) for every token of a rank and micro-batch, in
  /// order.
  template <class Visit>
  void for_each(int micro_batch, int rank, Visit&& visit) const {
    for (const TokenRun& run : runs(micro_batch, rank)) {
      for (int64_t t = run.begin; t < run.begin + run.count; ++t) visit(t);
    }
  }

 private:
  TokenSpread(int ranks, int micro_batches);
  void add(int64_t token);
  void add(TokenRun run);
  void end_rank() { begin_.push_back(std::ssize(runs_)); }

  int ranks_;
  int micro_batches_;
  std::vector<TokenRun> runs_;
  std::vector<int64_t> begin_;  // [micro_batches * ranks + 1]
};

}  // namespace airmoe::scheduler
