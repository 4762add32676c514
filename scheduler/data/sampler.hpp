#pragma once
// Training and validation windows of `context` tokens. A window depends on (seed, global sample
// index) only: not on the rank count, nor on what was drawn before, so a data cursor is one number.

#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/data/corpus.hpp"
#include "scheduler/data/split.hpp"

namespace airmoe::scheduler {

/// Keeps a reference to the corpus. All functions are local and allocate nothing.
class Sampler {
 public:
  /// Throws Error(ExitCode::config) when the corpus is too small for the context and the split.
  Sampler(const Corpus& corpus, int64_t context, double validation_fraction, uint64_t seed);

  /// Windows per epoch. Epoch e is a random permutation of all windows, each train segment shifted
  /// by a random phase below `context`, so that window borders differ between epochs.
  int64_t windows() const { return train_first_.back(); }
  /// Corpus position of the window of global sample `sample` (step * batch + position in the
  /// batch).
  int64_t window_begin(int64_t sample) const;
  /// tokens[i] = corpus[begin + i], targets[i] = corpus[begin + i + 1]. Shapes: [context]
  void fill(int64_t sample, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  /// Non-overlapping windows of the validation segments.
  int64_t validation_windows() const { return validation_first_.back(); }
  /// Window `index` of `count` spread evenly over all validation windows; the same at every call.
  /// count <= validation_windows().
  int64_t validation_begin(int64_t index, int64_t count) const;
  void fill_validation(int64_t index, int64_t count, std::span<int32_t> tokens,
                       std::span<int32_t> targets) const;

 private:
  void fill_at(int64_t begin, std::span<int32_t> tokens, std::span<int32_t> targets) const;

  const Corpus* corpus_;
  int64_t context_;
  uint64_t seed_;
  DataSplit split_;
  std::vector<int64_t> train_first_,
      validation_first_;  ///< windows before each segment, and in all
};

}  // namespace airmoe::scheduler
