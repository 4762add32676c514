#pragma once
// Who sends which tokens where in one micro-batch. Tokens travel sorted by part, so all that a
// receiver has to be told is one (part, count) pair per segment.
//
// Words: a *segment* is the tokens of one part that one home rank sends to one candidate rank. A
// *stream* is all segments from one home rank to one candidate rank, by ascending part; both sides
// number its tokens the same way, and every phase moves its data in stream order. On a candidate
// rank, a *group* is all tokens of one part, by home rank and then by index: global token order.
// A *chunk* is a range of parts; every stream falls into chunks, which move one after the other.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "router/assign.hpp"
#include "scheduler/moe/routes.hpp"

namespace airmoe::scheduler {

/// One segment as its home rank sees it.
struct HomeSegment {
  int32_t part;
  int32_t present;       ///< index into present()
  int64_t stream_begin;  ///< first token, over the concatenated streams to all ranks
  int64_t count;         ///< tokens
};

/// One segment as a candidate rank sees it.
struct CandidateSegment {
  int32_t group;
  int64_t stream_begin;  ///< first token, over the concatenated streams from all ranks
  int64_t token_begin;   ///< first token in group order
  int64_t count;         ///< tokens
  int64_t pairs;         ///< selected pairs, where the home rank selects; else 0
};

/// All tokens of one part on a candidate rank.
struct TokenGroup {
  int32_t part;
  int64_t token_begin;  ///< in group order
  int64_t count;        ///< tokens
};

/// The tokens of one part on their home rank.
struct PresentPart {
  int32_t part;
  int64_t begin;  ///< first token, place in home_order()
  int64_t count;
};

/// A token that goes to a rank because experts there were selected for it.
struct Selected {
  int32_t place;  ///< in home_order()
  int32_t pairs;  ///< selected experts there
};

/// What of a stream belongs to one chunk: segments and tokens, both as [begin, end).
struct StreamRange {
  int64_t segment_begin, segment_end, token_begin, token_end;
  int64_t tokens() const { return token_end - token_begin; }
};
/// What of the groups belongs to one chunk.
struct GroupRange {
  int64_t group_begin, group_end, token_begin, token_end;
};

class DispatchPlan {
 public:
  explicit DispatchPlan(comm::Communicator& comm);

  /// Local. Orders this rank's tokens by part. The tokens of a codeword with P parts are cut into P
  /// contiguous slices; slice i belongs to part (i + rank) mod P.
  /// @param chunk_begin  first part of each chunk and the number of parts. Shape: [chunks + 1]
  void order(const router::CodewordOrder& order, const Routes& routes,
             std::span<const int32_t> chunk_begin);
  /// Collective, after order(): one sparse exchange of segment lists. A token goes to every rank
  /// that scores at least one candidate of its part.
  void build(const Routes& routes);
  /// Collective, after order(): the same where home ranks select. Places are ascending.
  /// @param to  the tokens that go to each rank. Shape: [ranks]
  void build(std::span<const std::vector<Selected>> to);

  int64_t chunks() const { return std::ssize(chunk_begin_) - 1; }

  /// Home side. Tokens by part, then by index. Shape: [home tokens]
  std::span<const int32_t> home_order() const { return home_order_; }
  const std::vector<PresentPart>& present() const { return present_; }
  /// Present parts of a chunk, as [begin, end).
  std::pair<int64_t, int64_t> present_range(int64_t chunk) const {
    return {present_chunk_[chunk], present_chunk_[chunk + 1]};
  }
  const std::vector<HomeSegment>& home_segments() const { return home_; }
  /// Local token of each place of the concatenated streams.
  std::span<const int32_t> home_tokens() const { return home_token_; }
  StreamRange home_range(int r, int64_t chunk) const { return home_range_[r * chunks() + chunk]; }

  /// Candidate side.
  const std::vector<CandidateSegment>& candidate_segments() const { return candidate_; }
  StreamRange candidate_range(int r, int64_t chunk) const {
    return candidate_range_[r * chunks() + chunk];
  }
  const std::vector<TokenGroup>& groups() const { return groups_; }
  GroupRange group_range(int64_t chunk) const { return group_range_[chunk]; }
  /// Tokens on this candidate rank.
  int64_t tokens() const { return tokens_; }

 private:
  void begin_streams();
  void add_segment(int32_t present, int64_t count, int64_t pairs);
  void end_stream(int r);
  void exchange_segments();
  void group_by_part();
  void find_ranges();

  comm::Communicator& comm_;
  int words_ = 2;  // per segment: part, count[, pairs]
  std::vector<int32_t> chunk_begin_;
  std::vector<int32_t> home_order_;
  std::vector<PresentPart> present_;
  std::vector<int64_t> present_chunk_;
  std::vector<HomeSegment> home_;
  std::vector<int32_t> home_token_;
  std::vector<int64_t> home_begin_;  // segments to rank r: [home_begin_[r], home_begin_[r + 1])
  std::vector<CandidateSegment> candidate_;
  std::vector<int64_t> candidate_begin_;
  std::vector<TokenGroup> groups_;
  std::vector<StreamRange> home_range_, candidate_range_;
  std::vector<GroupRange> group_range_;
  int64_t tokens_ = 0;

  std::vector<int32_t> outgoing_;  // segments to all ranks
  std::vector<comm::Send<int32_t>> sends_;
  comm::Inbox<int32_t> inbox_;
  std::vector<int32_t> arrived_part_;  // of candidate_[i]
  std::vector<int32_t> touched_;       // parts that arrived, ascending
  std::vector<int64_t> tokens_of_;     // [parts], zero outside build()
  std::vector<int32_t> group_of_;      // [parts], valid for touched parts
};

}  // namespace airmoe::scheduler
