#include "scheduler/data/split.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {
namespace {

/// A small corpus is cut into about this many blocks.
constexpr int64_t kFewestBlocks = 64;
/// The split must not change with --seed, or runs could not be compared on their validation loss.
constexpr uint64_t kSplitSeed = 0;

int64_t block_size(int64_t corpus_tokens, int64_t context) {
  return std::max(2 * (context + 1), std::min(kSplitBlock, corpus_tokens / kFewestBlocks));
}

/// Extends the last segment when it ends where the new one begins.
void append(std::vector<Segment>& segments, Segment next) {
  if (!segments.empty() && segments.back().end == next.begin) {
    segments.back().end = next.end;
  } else {
    segments.push_back(next);
  }
}

}  // namespace

DataSplit DataSplit::make(int64_t corpus_tokens, int64_t context, double fraction) {
  if (!(fraction >= 0.0 && fraction < 1.0)) {
    fail(ExitCode::config, "--validation-fraction {} is outside [0, 1): choose for example {}",
         fraction, kDefaultValidationFraction);
  }
  const int64_t block = block_size(corpus_tokens, context);
  const int64_t blocks = fraction > 0 ? corpus_tokens / block : 1;  // the last takes the remainder
  const int64_t fewest = fraction > 0 ? 2 * block : context + 1;
  if (corpus_tokens < fewest) {
    fail(ExitCode::config,
         "the data has {} tokens, but --context {} with --validation-fraction {} needs {}: add "
         "data or shorten --context",
         corpus_tokens, context, fraction, fewest);
  }
  int64_t chosen = 0;
  if (fraction > 0) {
    const auto wanted = std::llround(fraction * static_cast<double>(blocks));
    chosen = std::clamp<int64_t>(wanted, 1, blocks - 1);
  }
  const BlockPartition strata{blocks, std::max<int64_t>(chosen, 1)};
  const RandomStream stream(kSplitSeed, Purpose::sample_order);
  DataSplit split;
  for (int64_t stratum = 0; stratum < strata.parts; ++stratum) {
    const double u = stream.uniform(static_cast<uint64_t>(stratum));
    const int64_t size = strata.size(stratum);
    const int64_t pick =
        strata.begin(stratum) + static_cast<int64_t>(u * static_cast<double>(size));
    for (int64_t b = strata.begin(stratum); b < strata.end(stratum); ++b) {
      const Segment segment{b * block, b + 1 == blocks ? corpus_tokens : (b + 1) * block};
      append(chosen > 0 && b == pick ? split.validation : split.train, segment);
    }
  }
  return split;
}

}  // namespace airmoe::scheduler
