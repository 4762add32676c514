#include "scheduler/data/sampler.hpp"

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {
namespace {

/// Micro-batch numbers of the two streams of an epoch.
constexpr uint32_t kOrderStream = 0;
constexpr uint32_t kPhaseStream = 1;

/// Windows of a train segment, the same for every phase: a window and its last target take
/// context + 1 tokens, and up to context - 1 tokens are kept free for the phase where that leaves a
/// window at all.
int64_t train_windows(int64_t tokens, int64_t context) {
  if (tokens < context + 1) return 0;
  return std::max<int64_t>(1, tokens / context - 1);
}

int64_t validation_windows(int64_t tokens, int64_t context) {
  return (tokens - 1) / context;
}

/// first[i]: windows in the segments before i; one more element holds them all.
template <class Count>
std::vector<int64_t> running_sum(const std::vector<Segment>& segments, Count count) {
  std::vector<int64_t> first = {0};
  for (const Segment& s : segments) first.push_back(first.back() + count(s.end - s.begin));
  return first;
}

/// The segment that holds window `index`.
std::size_t segment_of(const std::vector<int64_t>& first, int64_t index) {
  const auto after = std::upper_bound(first.begin(), first.end(), index);
  return static_cast<std::size_t>(after - first.begin()) - 1;
}

}  // namespace

Sampler::Sampler(const Corpus& corpus, int64_t context, double validation_fraction, uint64_t seed)
    : corpus_(&corpus),
      context_(context),
      seed_(seed),
      split_(DataSplit::make(corpus.size(), context, validation_fraction)) {
  train_first_ = running_sum(split_.train, [=](int64_t n) { return train_windows(n, context); });
  validation_first_ = running_sum(
      split_.validation, [=](int64_t n) { return scheduler::validation_windows(n, context); });
}

int64_t Sampler::window_begin(int64_t sample) const {
  AIRMOE_CHECK(sample >= 0, "sample {}", sample);
  const auto epoch = static_cast<uint32_t>(sample / windows());
  const auto place = static_cast<uint64_t>(sample % windows());
  const RandomStream order(seed_, Purpose::sample_order, epoch, kOrderStream);
  const RandomPermutation shuffle(order, static_cast<uint64_t>(windows()));
  const auto window = static_cast<int64_t>(shuffle(place));
  const std::size_t i = segment_of(train_first_, window);
  const Segment& segment = split_.train[i];
  const int64_t used = (train_first_[i + 1] - train_first_[i]) * context_ + 1;
  const int64_t phases = std::min(segment.end - segment.begin - used, context_ - 1) + 1;
  const RandomStream phase(seed_, Purpose::sample_order, epoch, kPhaseStream);
  const auto shift = static_cast<int64_t>(phase.uniform(i) * static_cast<double>(phases));
  return segment.begin + shift + (window - train_first_[i]) * context_;
}

int64_t Sampler::validation_begin(int64_t index, int64_t count) const {
  AIRMOE_CHECK(index >= 0 && index < count && count <= validation_windows(),
               "validation window {} of {}, but there are {}", index, count, validation_windows());
  // index * total / count without overflow.
  const int64_t total = validation_windows();
  const int64_t window = total / count * index + total % count * index / count;
  const std::size_t i = segment_of(validation_first_, window);
  return split_.validation[i].begin + (window - validation_first_[i]) * context_;
}

void Sampler::fill(int64_t sample, std::span<int32_t> tokens, std::span<int32_t> targets) const {
  fill_at(window_begin(sample), tokens, targets);
}

void Sampler::fill_validation(int64_t index, int64_t count, std::span<int32_t> tokens,
                              std::span<int32_t> targets) const {
  fill_at(validation_begin(index, count), tokens, targets);
}

void Sampler::fill_at(int64_t begin, std::span<int32_t> tokens, std::span<int32_t> targets) const {
  AIRMOE_CHECK(static_cast<int64_t>(tokens.size()) == context_ && tokens.size() == targets.size(),
               "{} tokens and {} targets for a context of {}", tokens.size(), targets.size(),
               context_);
  corpus_->copy(begin, context_, tokens.data());
  corpus_->copy(begin + 1, context_, targets.data());
}

}  // namespace airmoe::scheduler
