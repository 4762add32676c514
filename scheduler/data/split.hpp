#pragma once
// Which parts of the corpus are for training and which for validation. Depends on the size of the
// corpus, the context and the fraction only: not on the seed, nor on the rank count.

#include <cstdint>
#include <vector>

namespace airmoe::scheduler {

/// Tokens [begin, end) of the corpus.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
};

inline constexpr int64_t kSplitBlock = 65536;
inline constexpr double kDefaultValidationFraction = 0.05;

/// The corpus is cut into blocks of kSplitBlock tokens (smaller for a small corpus, but never below
/// 2 * (context + 1)); fraction * blocks of them, at least one, spread evenly with a fixed random
/// offset each, are for validation. Neighbouring blocks of one kind form a segment.
struct DataSplit {
  std::vector<Segment> train, validation;  ///< ascending; together they are the corpus

  /// fraction 0: no validation. Throws Error(ExitCode::config) when the corpus is too small.
  static DataSplit make(int64_t corpus_tokens, int64_t context, double fraction);
};

}  // namespace airmoe::scheduler
