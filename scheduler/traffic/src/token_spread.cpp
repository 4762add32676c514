#include "scheduler/traffic/token_spread.hpp"

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {

TokenSpread::TokenSpread(int ranks, int micro_batches)
    : ranks_(ranks), micro_batches_(micro_batches), begin_{0} {
  AIRMOE_CHECK(ranks >= 1 && micro_batches >= 1, "ranks {}, micro-batches {}", ranks,
               micro_batches);
}

void TokenSpread::add(TokenRun run) {
  if (run.count > 0) runs_.push_back(run);
}

void TokenSpread::add(int64_t token) {
  const bool first = std::ssize(runs_) == begin_.back();
  if (!first && runs_.back().begin + runs_.back().count == token) {
    ++runs_.back().count;
  } else {
    runs_.push_back({token, 1});
  }
}

TokenSpread TokenSpread::recorded(std::span<const int32_t> home_rank, int ranks,
                                  int micro_batches) {
  TokenSpread spread(ranks, micro_batches);
  const BlockPartition batches{std::ssize(home_rank), micro_batches};
  for (int u = 0; u < micro_batches; ++u) {
    std::vector<std::vector<int64_t>> of_rank(static_cast<std::size_t>(ranks));
    for (int64_t t = batches.begin(u); t < batches.end(u); ++t) {
      if (home_rank[t] < 0 || home_rank[t] >= ranks) {
        fail(ExitCode::bad_data, "token {} has home rank {}, but there are {} ranks", t,
             home_rank[t], ranks);
      }
      of_rank[home_rank[t]].push_back(t);
    }
    for (const auto& tokens : of_rank) {
      for (const int64_t t : tokens) spread.add(t);
      spread.end_rank();
    }
  }
  return spread;
}

TokenSpread TokenSpread::even(int64_t tokens, int ranks, int micro_batches) {
  TokenSpread spread(ranks, micro_batches);
  const BlockPartition batches{tokens, micro_batches};
  for (int u = 0; u < micro_batches; ++u) {
    const BlockPartition blocks{batches.size(u), ranks};
    for (int r = 0; r < ranks; ++r) {
      spread.add(TokenRun{batches.begin(u) + blocks.begin(r), blocks.size(r)});
      spread.end_rank();
    }
  }
  return spread;
}

TokenSpread TokenSpread::tiled(int64_t tokens, int ranks, int64_t per_rank, int64_t sequence,
                               uint64_t seed, int micro_batches) {
  AIRMOE_CHECK(tokens >= 1 && per_rank >= 0 && sequence >= 1, "tokens {}, per rank {}, sequence {}",
               tokens, per_rank, sequence);
  TokenSpread spread(ranks, micro_batches);
  const int64_t length = std::min(sequence, tokens);
  const int64_t sequences = (tokens + length - 1) / length;  // the last may wrap around
  const int64_t per_home = (per_rank + length - 1) / length;
  const int64_t slots = std::max<int64_t>(per_home * ranks * micro_batches, 1);
  const RandomPermutation order(RandomStream(seed, Purpose::sample_order),
                                static_cast<uint64_t>(slots));
  for (int64_t home = 0; home < static_cast<int64_t>(micro_batches) * ranks; ++home) {
    int64_t left = per_rank;
    for (int64_t i = 0; i < per_home; ++i) {
      const auto slot = static_cast<int64_t>(order(static_cast<uint64_t>(home * per_home + i)));
      const int64_t begin = slot % sequences * length;
      const int64_t count = std::min(length, left);
      const int64_t whole = std::min(count, tokens - begin);
      spread.add(TokenRun{begin, whole});
      spread.add(TokenRun{0, count - whole});
      left -= count;
    }
    spread.end_rank();
  }
  return spread;
}

int64_t TokenSpread::tokens() const {
  int64_t total = 0;
  for (const TokenRun& run : runs_) total += run.count;
  return total;
}

}  // namespace airmoe::scheduler
