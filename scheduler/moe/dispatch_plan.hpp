#pragma once
// Who sends which tokens where in one micro-batch. Tokens travel sorted by codeword, so all that a
// receiver has to be told is one (codeword, count) pair per segment.
//
// Words: a *segment* is the tokens of one codeword that one home rank sends to one candidate rank.
// A *stream* is all segments from one home rank to one candidate rank, by ascending codeword; both
// sides number its tokens the same way, and every phase moves its data in stream order. On a
// candidate rank, a *group* is all tokens of one codeword, by home rank and then by index: global
// token order.

#include <cstdint>
#include <vector>

#include "comm/communicator.hpp"
#include "router/assign.hpp"
#include "scheduler/moe/shortlists.hpp"

namespace airmoe::scheduler {

/// One segment as its home rank sees it.
struct HomeSegment {
  int32_t present;  ///< index into CodewordOrder::present
  int32_t codeword;
  int64_t order_begin;   ///< first token, place in CodewordOrder::token
  int64_t stream_begin;  ///< first token, over the concatenated streams to all ranks
  int64_t count;         ///< tokens
};

/// One segment as a candidate rank sees it.
struct CandidateSegment {
  int32_t group;
  int64_t stream_begin;  ///< first token, over the concatenated streams from all ranks
  int64_t token_begin;   ///< first token in group order
  int64_t count;         ///< tokens
};

/// All tokens of one codeword on a candidate rank.
struct TokenGroup {
  int32_t codeword;
  int64_t token_begin;  ///< in group order
  int64_t count;        ///< tokens
};

class DispatchPlan {
 public:
  explicit DispatchPlan(comm::Communicator& comm, int64_t codewords);

  /// Collective: one sparse exchange of segment lists. A token goes to every rank that holds at
  /// least one candidate of its codeword.
  void build(const router::CodewordOrder& order, const Shortlists& shortlists);

  /// Home side. Segments to rank r: [segments_begin(r), segments_begin(r + 1)).
  const std::vector<HomeSegment>& home_segments() const { return home_; }
  int64_t home_segments_begin(int r) const { return home_begin_[r]; }
  /// Tokens sent to ranks below r; home_stream_begin(size) is their sum over all ranks.
  int64_t home_stream_begin(int r) const { return home_stream_[r]; }

  /// Candidate side. Segments from rank r: [segments_begin(r), segments_begin(r + 1)).
  const std::vector<CandidateSegment>& candidate_segments() const { return candidate_; }
  int64_t candidate_segments_begin(int r) const { return candidate_begin_[r]; }
  int64_t candidate_stream_begin(int r) const { return candidate_stream_[r]; }
  const std::vector<TokenGroup>& groups() const { return groups_; }
  /// Tokens on this candidate rank.
  int64_t tokens() const { return candidate_stream_.back(); }

 private:
  void group_by_codeword();

  comm::Communicator& comm_;
  std::vector<HomeSegment> home_;
  std::vector<int64_t> home_begin_, home_stream_;
  std::vector<CandidateSegment> candidate_;
  std::vector<int64_t> candidate_begin_, candidate_stream_;
  std::vector<TokenGroup> groups_;

  std::vector<int32_t> outgoing_;  // (codeword, count) pairs to all ranks
  std::vector<comm::Send<int32_t>> sends_;
  comm::Inbox<int32_t> inbox_;
  std::vector<int32_t> arrived_codeword_;  // of candidate_[i]
  std::vector<int32_t> touched_;           // codewords that arrived, ascending
  std::vector<int64_t> tokens_of_;         // [G], zero outside build()
  std::vector<int32_t> group_of_;          // [G], valid for touched codewords
};

}  // namespace airmoe::scheduler
