#pragma once
// Sets of experts that the tokens of a home rank have as candidates or
// selected. Private.

#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "scheduler/traffic/bit_rows.hpp"
#include "scheduler/traffic/routing_trace.hpp"
#include "scheduler/traffic/token_spread.hpp"

namespace airmoe::scheduler {

/// Unions over runs of tokens. A run that occurs more than once is united once
/// and kept, so a batch made by repeating sequences of a small trace costs one
/// pass over the trace.
class HomeSets {
 public:
  HomeSets(const RoutingTrace& trace, const TokenSpread& spread);

  /// Adds the selected experts of a rank's tokens to `experts`.
  void add_selected(int micro_batch, int rank, std::span<uint64_t> experts);
  /// Adds the lists of the codewords of a rank's tokens to `experts`.
  void add_candidates(int micro_batch, int rank, std::span<uint64_t> experts);

 private:
  struct Kept {
    int64_t uses = 0;
    int64_t row = -1;  // of kept sets, -1: not computed
  };
  template <class Mark>
  void add(int micro_batch, int rank, std::span<uint64_t> experts, BitRows& sets,
           std::vector<bool>& made, Mark&& mark);
  void mark_selected(const TokenRun& run, std::span<uint64_t> experts) const;
  void mark_candidates(const TokenRun& run, std::span<uint64_t> experts);

  const RoutingTrace& trace_;
  const TokenSpread& spread_;
  std::map<std::pair<int64_t, int64_t>, Kept> kept_;  // by (begin, count)
  BitRows selected_, candidates_;
  std::vector<bool> selected_made_, candidates_made_;
  std::vector<int64_t> codeword_run_;  // run that marked a codeword last
  int64_t runs_ = 0;
};

}  // namespace airmoe::scheduler
