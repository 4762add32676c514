#pragma once
// Bytes and messages of one optimizer step of one MoE layer, by kind and by
// rank, and what the ranks have to compute: the result of every predictor.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/sum_precision.hpp"

namespace airmoe::scheduler {

/// One kind of payload in one direction. A phase of StatsCommunicator is one or
/// more channels.
enum class Channel : uint8_t {
  metadata,           ///< home to candidate rank: which segments come (phase dispatch)
  dispatch,           ///< home to candidate rank: token states
  scores,             ///< candidate to home rank (phase select)
  cuts,               ///< home to candidate rank (phase select)
  combine,            ///< candidate to home rank
  usage_to_owner,     ///< counts of selections of copies (phase usage)
  usage_to_copy,      ///< their sums
  backward_dispatch,  ///< home to candidate rank: output gradients
  backward_combine,   ///< candidate to home rank: gradients of token states
  copy_requests,      ///< holder to owner (phase copies)
  copy_values,        ///< owner to holder (phase copies)
  copy_gradients,     ///< holder to owner
  lists,              ///< rebuild of shortlists; an approximation
};
inline constexpr int kChannels = 13;

/// Name of a channel, and of the phase it is counted under.
const char* name_of(Channel channel);
const char* phase_of(Channel channel);

/// Shape and options that decide how many bytes a token, an expert or a copy
/// takes.
struct TrafficShape {
  int64_t dim = 0;         ///< d
  int64_t expert_dim = 1;  ///< m
  bool gated = false;      ///< swiglu: three matrices instead of two
  bool jitter = true;      ///< scores get noise: token indices travel
  bool balance = true;     ///< a balance loss: its column travels
  SumPrecision sums = SumPrecision::f64;

  int64_t matrices() const { return gated ? 3 : 2; }
  /// P: values that a copy receives: unit centroid and the expert's rows.
  int64_t values() const { return (matrices() * expert_dim + 1) * dim; }
  /// Values of these that only a selected copy receives.
  int64_t used_values() const { return values() - dim; }
  int64_t sum_bytes() const { return sums == SumPrecision::f64 ? 8 : 4; }
  int64_t dispatch_bytes() const { return 4 * dim + (jitter ? 4 : 0); }
  int64_t backward_bytes() const { return 4 * (dim + 1); }
  int64_t copy_gradient_bytes() const { return 4 + values() * sum_bytes(); }
  /// A returned row of `width` sums of which `taken` of `active` selected
  /// experts are terms.
  int64_t return_bytes(int64_t width, int64_t taken, int64_t active) const {
    return width * (taken == active ? 4 : sum_bytes());
  }
  int64_t combine_width() const { return dim + (balance ? 1 : 0); }
};

/// Of one rank in one channel; to and from other ranks only.
struct RankTraffic {
  int64_t sent = 0;      ///< bytes
  int64_t received = 0;  ///< bytes
  int64_t messages = 0;  ///< sent; one per pair of ranks and exchange that has payload
};

class StepTraffic {
 public:
  explicit StepTraffic(int ranks = 0)
      : ranks_(ranks), of_(static_cast<std::size_t>(ranks) * kChannels) {}

  int ranks() const { return ranks_; }
  RankTraffic& at(Channel c, int rank) { return of_[static_cast<int>(c) * ranks_ + rank]; }
  const RankTraffic& at(Channel c, int rank) const {
    return of_[static_cast<int>(c) * ranks_ + rank];
  }
  /// `bytes` in one message from one rank to another.
  void message(Channel c, int from, int to, int64_t bytes) {
    at(c, from).sent += bytes;
    ++at(c, from).messages;
    at(c, to).received += bytes;
  }
  /// Sent by all ranks.
  int64_t bytes(Channel c) const;
  int64_t bytes() const;
  /// What StatsCommunicator counts on `rank` under `phase`.
  int64_t phase_bytes(const std::string& phase, int rank) const;
  int64_t phase_messages(const std::string& phase, int rank) const;
  /// All channels of one rank.
  RankTraffic of_rank(int rank) const;

 private:
  int ranks_;
  std::vector<RankTraffic> of_;  // [channel][rank]
};

/// What one rank computes and holds.
struct RankLoad {
  int64_t tokens = 0;     ///< (token, rank) pairs scored or, where homes score, computed here
  int64_t scored = 0;     ///< (token, candidate) pairs scored here
  int64_t selected = 0;   ///< (token, selected expert) pairs computed here
  int64_t owned = 0;      ///< experts with optimizer state here
  int64_t copies = 0;     ///< experts with parameters only
  int64_t centroids = 0;  ///< experts with a centroid only (strategy `selected`)
};

struct StepPrediction {
  StepTraffic traffic;
  std::vector<RankLoad> load;   ///< Shape: [ranks]
  int64_t tokens = 0;           ///< of all ranks and micro-batches
  int64_t candidate_ranks = 0;  ///< sum of cover sizes over tokens
  int64_t selected_ranks = 0;   ///< sum over tokens of ranks with a selected expert
};

}  // namespace airmoe::scheduler
