// The select phase: the exact global top K of each token. Where one rank holds all candidates of a
// codeword, that rank decides alone. Elsewhere every candidate rank reports its best scores, the
// home rank finds the K-th best of the union and tells each rank where to cut.

#include <algorithm>
#include <cstring>

#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

void MoeLayer::select() {
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  report_scores();
  cut_at_home();
  cut_locally();
  apply_cuts();
}

// Candidate side to home side: min(K, candidates here) scores per token of a shared codeword.
void MoeLayer::report_scores() {
  candidate_rows_.assign(ranks_, 0);
  home_rows_.assign(ranks_, 0);
  const std::vector<TokenGroup>& groups = plan_.groups();
  int64_t total = 0;
  const auto keep_of_group = [&](const TokenGroup& group) {
    return kept(shortlists_.candidates(group.codeword, rank_));
  };
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.candidate_segments_begin(r); i < plan_.candidate_segments_begin(r + 1);
         ++i) {
      const CandidateSegment& segment = plan_.candidate_segments()[i];
      const TokenGroup& group = groups[segment.group];
      if (shortlists_.cover_size(group.codeword) == 1) continue;
      candidate_rows_[r] += segment.count * keep_of_group(group);
    }
    total += candidate_rows_[r];
  }
  score_out_.ensure(total);
  float* out = score_out_.data();
  for (const CandidateSegment& segment : plan_.candidate_segments()) {
    const TokenGroup& group = groups[segment.group];
    if (shortlists_.cover_size(group.codeword) == 1) continue;
    const int64_t keep = keep_of_group(group);
    const int64_t at =
        group_pairs_[segment.group] + (segment.token_begin - group.token_begin) * keep;
    std::copy_n(gate_.data() + at, segment.count * keep, out);
    out += segment.count * keep;
  }

  const std::vector<HomeSegment>& segments = plan_.home_segments();
  segment_score_.assign(segments.size(), 0);
  total = 0;
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.home_segments_begin(r); i < plan_.home_segments_begin(r + 1); ++i) {
      segment_score_[i] = total + home_rows_[r];
      if (shortlists_.cover_size(segments[i].codeword) == 1) continue;
      home_rows_[r] += segments[i].count * kept(shortlists_.candidates(segments[i].codeword, r));
    }
    total += home_rows_[r];
  }
  score_in_.ensure(total);
  exchange_rows(score_out_.data(), candidate_rows_, score_in_.data(), home_rows_, 1, kTagScores);
}

// Home side: cuts per (token, rank) of shared codewords, sent to the candidate ranks.
void MoeLayer::cut_at_home() {
  const std::vector<HomeSegment>& segments = plan_.home_segments();
  const int64_t present = order_.present.size();
  segment_of_.assign(ranks_ * present, -1);
  segment_cut_.assign(segments.size(), 0);
  taken_.ensure(plan_.home_stream_begin(ranks_));
  home_rows_.assign(ranks_, 0);
  int64_t cuts = 0;
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.home_segments_begin(r); i < plan_.home_segments_begin(r + 1); ++i) {
      const HomeSegment& segment = segments[i];
      segment_of_[r * present + segment.present] = i;
      segment_cut_[i] = cuts;
      if (shortlists_.cover_size(segment.codeword) == 1) {
        std::fill_n(taken_.data() + segment.stream_begin, segment.count,
                    static_cast<int32_t>(kept(shortlists_.candidates(segment.codeword, r))));
      } else {
        cuts += segment.count;
        home_rows_[r] += segment.count;
      }
    }
  }
  cut_out_.ensure(cuts);
  token_cuts_.ensure(ranks_);
  token_taken_.ensure(ranks_);

  for (int64_t p = 0; p < present; ++p) {
    const int32_t codeword = order_.present[p];
    const int32_t cover = shortlists_.cover_size(codeword);
    if (cover == 1) continue;
    token_sizes_.clear();
    token_ranks_.clear();
    int64_t candidates = 0;
    for (int r = 0; r < ranks_; ++r) {
      if (shortlists_.candidates(codeword, r) == 0) continue;
      token_ranks_.push_back(r);
      token_sizes_.push_back(kept(shortlists_.candidates(codeword, r)));
      candidates += token_sizes_.back();
    }
    token_scores_.ensure(candidates);
    const int64_t tokens = order_.begin[p + 1] - order_.begin[p];
    for (int64_t j = 0; j < tokens; ++j) {
      float* scores = token_scores_.data();
      for (int32_t c = 0; c < cover; ++c) {
        const int64_t segment = segment_of_[token_ranks_[c] * present + p];
        std::copy_n(score_in_.data() + segment_score_[segment] + j * token_sizes_[c],
                    token_sizes_[c], scores);
        scores += token_sizes_[c];
      }
      router::cut_top_k({token_scores_.data(), static_cast<std::size_t>(candidates)}, token_sizes_,
                        config_.active, {token_cuts_.data(), static_cast<std::size_t>(cover)},
                        {token_taken_.data(), static_cast<std::size_t>(cover)}, cut_workspace_);
      for (int32_t c = 0; c < cover; ++c) {
        const int64_t segment = segment_of_[token_ranks_[c] * present + p];
        cut_out_[segment_cut_[segment] + j] = token_cuts_[c];
        taken_[segments[segment].stream_begin + j] = token_taken_[c];
      }
    }
  }
}

// Candidate side: receives the cuts of shared codewords, makes those of its own, in group order.
void MoeLayer::cut_locally() {
  static_assert(sizeof(router::Cut) == 16);
  const std::vector<TokenGroup>& groups = plan_.groups();
  candidate_rows_.assign(ranks_, 0);
  int64_t total = 0;
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.candidate_segments_begin(r); i < plan_.candidate_segments_begin(r + 1);
         ++i) {
      const CandidateSegment& segment = plan_.candidate_segments()[i];
      if (shortlists_.cover_size(groups[segment.group].codeword) > 1) {
        candidate_rows_[r] += segment.count;
      }
    }
    total += candidate_rows_[r];
  }
  cut_in_.ensure(total);
  byte_sends_.clear();
  byte_recvs_.clear();
  const auto* out = reinterpret_cast<const uint8_t*>(cut_out_.data());
  auto* in = reinterpret_cast<uint8_t*>(cut_in_.data());
  for (int r = 0; r < ranks_; ++r) {
    const std::size_t sent = static_cast<std::size_t>(home_rows_[r]) * sizeof(router::Cut);
    const std::size_t received = static_cast<std::size_t>(candidate_rows_[r]) * sizeof(router::Cut);
    byte_sends_.push_back({r, {out, sent}});
    byte_recvs_.push_back({r, {in, received}});
    out += sent;
    in += received;
  }
  comm_.exchange<uint8_t>(byte_sends_, byte_recvs_, kTagCuts).wait();

  cuts_.ensure(plan_.tokens());
  const router::Cut* received = cut_in_.data();
  for (const CandidateSegment& segment : plan_.candidate_segments()) {
    const TokenGroup& group = groups[segment.group];
    router::Cut* cuts = cuts_.data() + segment.token_begin;
    if (shortlists_.cover_size(group.codeword) > 1) {
      std::copy_n(received, segment.count, cuts);
      received += segment.count;
      continue;
    }
    const int64_t keep = kept(shortlists_.candidates(group.codeword, rank_));
    const float* scores = gate_.data() + group_pairs_[segment.group] +
                          (segment.token_begin - group.token_begin) * keep;
    int32_t taken = 0;
    for (int64_t j = 0; j < segment.count; ++j) {
      router::cut_top_k({scores + j * keep, static_cast<std::size_t>(keep)}, {&keep, 1},
                        config_.active, {cuts + j, 1}, {&taken, 1}, cut_workspace_);
    }
  }
}

// Candidate side: scores become gates, pairs that were not selected go; the arrays close up in
// place.
void MoeLayer::apply_cuts() {
  pair_offset_.ensure(plan_.tokens() + 1);
  pair_offset_[0] = 0;
  pair_expert_.ensure(position_.size());
  if (batch_.training) usage_.begin_micro_batch();
  int64_t end = 0;
  const std::vector<TokenGroup>& groups = plan_.groups();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const TokenGroup& group = groups[i];
    const std::span<const int32_t> rows = shortlists_.resident(group.codeword);
    const int64_t keep = kept(std::ssize(rows));
    for (int64_t t = 0; t < group.count; ++t) {
      const int64_t token = group.token_begin + t;
      const int64_t at = group_pairs_[static_cast<int64_t>(i)] + t * keep;
      const int64_t taken =
          router::apply_cut(cuts_[token], position_.data() + at, gate_.data() + at, keep,
                            position_.data() + end, gate_.data() + end);
      for (int64_t p = end; p < end + taken; ++p) pair_expert_[p] = rows[position_[p]];
      end += taken;
      pair_offset_[token + 1] = end;
    }
  }
  if (batch_.training) usage_.add(pair_expert_.data(), gate_.data(), end);
}

}  // namespace airmoe::scheduler
