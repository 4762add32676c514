// The select phase where candidates are scored: the exact global top K of each token. Where one
// rank scores all candidates of a part, that rank decides alone. Elsewhere every candidate rank
// reports its best scores, the home rank finds the K-th best of the union and tells each rank where
// to cut. Scores that tie at the cut across ranks are settled by expert id, in a second, rare
// exchange.

#include <algorithm>
#include <cstring>

#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

namespace {

// What Cut::ties says while the home rank does not know whose ties to take.
constexpr int32_t kTiesOpen = -1;

}  // namespace

void MoeLayer::begin_select() {
  const std::vector<TokenGroup>& groups = plan_.groups();
  int64_t pairs = 0;
  if (home_selects()) {
    for (const CandidateSegment& segment : plan_.candidate_segments()) pairs += segment.pairs;
  } else {
    group_pairs_.ensure(std::ssize(groups) + 1);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      group_pairs_[i] = pairs;
      pairs += groups[i].count * kept(routes_.candidates(groups[i].part, rank_));
    }
    group_pairs_[std::ssize(groups)] = pairs;
    taken_.ensure(std::ssize(plan_.home_tokens()));
    const int64_t present = std::ssize(plan_.present());
    segment_of_.assign(ranks_ * present, -1);
    for (int r = 0; r < ranks_; ++r) {
      for (int64_t c = 0; c < plan_.chunks(); ++c) {
        const StreamRange range = plan_.home_range(r, c);
        for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
          segment_of_[r * present + plan_.home_segments()[s].present] = s;
        }
      }
    }
    segment_score_.resize(plan_.home_segments().size());
    segment_cut_.resize(plan_.home_segments().size());
  }
  position_.ensure(pairs);
  gate_.ensure(pairs);
  pair_expert_.ensure(pairs);
  cuts_.ensure(plan_.tokens());
  pair_offset_.ensure(plan_.tokens() + 1);
  pair_offset_[0] = 0;
}

// Candidate side to home side: min(K, candidates here) scores per token of a shared part.
void MoeLayer::post_scores(int64_t c) {
  if (home_selects()) return;
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  Chunk& chunk = chunks_[c];
  const std::vector<TokenGroup>& groups = plan_.groups();
  const std::vector<CandidateSegment>& candidates = plan_.candidate_segments();
  const std::vector<HomeSegment>& homes = plan_.home_segments();
  const auto shared_scores = [&](const CandidateSegment& segment) {
    const int32_t part = groups[segment.group].part;
    return routes_.cover_size(part) == 1 ? int64_t{0}
                                         : segment.count * kept(routes_.candidates(part, rank_));
  };
  int64_t sent = 0, received = 0;
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange out = plan_.candidate_range(r, c);
    for (int64_t s = out.segment_begin; s < out.segment_end; ++s) {
      sent += shared_scores(candidates[s]);
    }
    const StreamRange in = plan_.home_range(r, c);
    for (int64_t s = in.segment_begin; s < in.segment_end; ++s) {
      segment_score_[s] = received;
      if (routes_.cover_size(homes[s].part) == 1) continue;
      received += homes[s].count * kept(routes_.candidates(homes[s].part, r));
    }
  }
  chunk.score_out.ensure(sent);
  chunk.score_in.ensure(received);
  float_sends_.clear();
  float_recvs_.clear();
  float* out = chunk.score_out.data();
  int64_t in = 0;
  for (int r = 0; r < ranks_; ++r) {
    float* begin = out;
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = candidates[s];
      const int64_t size = shared_scores(segment);
      const TokenGroup& group = groups[segment.group];
      const int64_t keep = kept(routes_.candidates(group.part, rank_));
      const int64_t at =
          group_pairs_[segment.group] + (segment.token_begin - group.token_begin) * keep;
      std::copy_n(gate_.data() + at, size, out);
      out += size;
    }
    float_sends_.push_back({r, {begin, static_cast<std::size_t>(out - begin)}});
    const StreamRange arriving = plan_.home_range(r, c);
    int64_t size = 0;
    for (int64_t s = arriving.segment_begin; s < arriving.segment_end; ++s) {
      if (routes_.cover_size(homes[s].part) == 1) continue;
      size += homes[s].count * kept(routes_.candidates(homes[s].part, r));
    }
    float_recvs_.push_back({r, {chunk.score_in.data() + in, static_cast<std::size_t>(size)}});
    in += size;
  }
  chunk.scores.start(exchange_clock_,
                     comm_.exchange<float>(float_sends_, float_recvs_, kTagScores));
}

// Home side: token j of present part p, as its candidate ranks report it.
void MoeLayer::gather_token_scores(const Chunk& chunk, int64_t p, int64_t j) {
  const int64_t present = std::ssize(plan_.present());
  float* scores = token_scores_.data();
  for (std::size_t i = 0; i < token_ranks_.size(); ++i) {
    const int64_t segment = segment_of_[token_ranks_[i] * present + p];
    std::copy_n(chunk.score_in.data() + segment_score_[segment] + j * token_sizes_[i],
                token_sizes_[i], scores);
    scores += token_sizes_[i];
  }
}

// Home side: the ranks that score candidates of a part and how many scores each reports.
int64_t MoeLayer::list_cover(int32_t part) {
  token_sizes_.clear();
  token_ranks_.clear();
  int64_t candidates = 0;
  for (int r = 0; r < ranks_; ++r) {
    if (routes_.candidates(part, r) == 0) continue;
    token_ranks_.push_back(r);
    token_sizes_.push_back(kept(routes_.candidates(part, r)));
    candidates += token_sizes_.back();
  }
  token_scores_.ensure(candidates);
  token_ids_.ensure(candidates);
  token_cuts_.ensure(ranks_);
  token_taken_.ensure(ranks_);
  return candidates;
}

// Home side: cuts per (token, rank) of shared parts.
void MoeLayer::cut_at_home(int64_t c) {
  if (home_selects()) return;
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  Chunk& chunk = chunks_[c];
  chunk.scores.wait();
  chunk.tied.clear();
  int64_t cuts = 0;
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.home_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const HomeSegment& segment = plan_.home_segments()[s];
      segment_cut_[s] = cuts;
      if (routes_.cover_size(segment.part) == 1) {
        std::fill_n(taken_.data() + segment.stream_begin, segment.count,
                    static_cast<int32_t>(kept(routes_.candidates(segment.part, r))));
      } else {
        cuts += segment.count;
      }
    }
  }
  chunk.cut_out.ensure(cuts);

  const int64_t present = std::ssize(plan_.present());
  const auto [begin, end] = plan_.present_range(c);
  for (int64_t p = begin; p < end; ++p) {
    const PresentPart& part = plan_.present()[p];
    if (routes_.cover_size(part.part) == 1) continue;
    const auto candidates = static_cast<std::size_t>(list_cover(part.part));
    const std::size_t cover = token_ranks_.size();
    for (int64_t j = 0; j < part.count; ++j) {
      gather_token_scores(chunk, p, j);
      const bool tied = router::cut_top_k({token_scores_.data(), candidates}, token_sizes_,
                                          config_.active, {token_cuts_.data(), cover},
                                          {token_taken_.data(), cover}, cut_workspace_);
      if (tied) {
        chunk.tied.push_back({p, j});
        for (std::size_t i = 0; i < cover; ++i) token_cuts_[i].ties = kTiesOpen;
      }
      for (std::size_t i = 0; i < cover; ++i) {
        const int64_t segment = segment_of_[token_ranks_[i] * present + p];
        chunk.cut_out[segment_cut_[segment] + j] = token_cuts_[i];
        taken_[plan_.home_segments()[segment].stream_begin + j] = token_taken_[i];
      }
    }
    poll();
  }
}

void MoeLayer::post_cuts(int64_t c) {
  if (home_selects()) return;
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  Chunk& chunk = chunks_[c];
  byte_sends_.clear();
  byte_recvs_.clear();
  const auto cut_bytes = [&](int64_t tokens) {
    return static_cast<std::size_t>(tokens) * sizeof(router::Cut);
  };
  std::vector<int64_t>& arriving = cuts_arriving_;
  arriving.assign(ranks_, 0);
  int64_t received = 0;
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      if (routes_.cover_size(plan_.groups()[segment.group].part) > 1) arriving[r] += segment.count;
    }
    received += arriving[r];
  }
  chunk.cut_in.ensure(received);
  const auto* out = reinterpret_cast<const uint8_t*>(chunk.cut_out.data());
  auto* in = reinterpret_cast<uint8_t*>(chunk.cut_in.data());
  for (int r = 0; r < ranks_; ++r) {
    int64_t sent = 0;
    const StreamRange range = plan_.home_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const HomeSegment& segment = plan_.home_segments()[s];
      if (routes_.cover_size(segment.part) > 1) sent += segment.count;
    }
    byte_sends_.push_back({r, {out, cut_bytes(sent)}});
    byte_recvs_.push_back({r, {in, cut_bytes(arriving[r])}});
    out += cut_bytes(sent);
    in += cut_bytes(arriving[r]);
  }
  chunk.cuts.start(exchange_clock_, comm_.exchange<uint8_t>(byte_sends_, byte_recvs_, kTagCuts));
}

// Candidate side: the cut of every token of the chunk, but for ties that are still open.
void MoeLayer::receive_cuts(int64_t c) {
  if (home_selects()) return;
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  Chunk& chunk = chunks_[c];
  chunk.cuts.wait();
  const router::Cut* received = chunk.cut_in.data();
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      const TokenGroup& group = plan_.groups()[segment.group];
      router::Cut* cuts = cuts_.data() + segment.token_begin;
      if (routes_.cover_size(group.part) > 1) {
        std::copy_n(received, segment.count, cuts);
        received += segment.count;
        continue;
      }
      const int64_t keep = kept(routes_.candidates(group.part, rank_));
      const float* scores = gate_.data() + group_pairs_[segment.group] +
                            (segment.token_begin - group.token_begin) * keep;
      int32_t taken = 0;
      for (int64_t j = 0; j < segment.count; ++j) {
        router::cut_top_k({scores + j * keep, static_cast<std::size_t>(keep)}, {&keep, 1},
                          config_.active, {cuts + j, 1}, {&taken, 1}, cut_workspace_);
      }
    }
  }
}

// Home side: place in cut_out of a tied token's cut for the i-th rank of the cover.
int64_t MoeLayer::cut_of(const TiedToken& token, std::size_t i) const {
  const int64_t present = std::ssize(plan_.present());
  return segment_cut_[segment_of_[token_ranks_[i] * present + token.present]] + token.token;
}

// Candidate ranks tell the home rank the ids of tied scores of tokens whose ties are open; the
// home rank answers how many ties each may take. No message without such tokens.
void MoeLayer::resolve_ties(int64_t c) {
  if (home_selects()) return;
  const PhaseClock::Scope time(clock_, Phase::select);
  const comm::ScopedPhase phase(comm_, phase_name("select", "eval_select"));
  Chunk& chunk = chunks_[c];
  const int64_t present = std::ssize(plan_.present());
  tie_ids_out_.resize(ranks_);
  tie_ids_in_.resize(ranks_);
  ties_out_.resize(ranks_);
  ties_in_.resize(ranks_);
  int_sends_.clear();
  int_recvs_.clear();
  for (int r = 0; r < ranks_; ++r) {
    tie_ids_out_[r].clear();
    ties_in_[r].clear();
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      const TokenGroup& group = plan_.groups()[segment.group];
      const std::span<const int32_t> rows = routes_.resident(group.part);
      const int64_t keep = kept(std::ssize(rows));
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        if (cuts_[t].ties != kTiesOpen) continue;
        const int64_t at = group_pairs_[segment.group] + (t - group.token_begin) * keep;
        for (int64_t j = 0; j < keep; ++j) {
          if (!router::is_tied(gate_[at + j], cuts_[t].threshold)) continue;
          tie_ids_out_[r].push_back(residency_.expert(rows[position_[at + j]]));
        }
        ties_in_[r].push_back(0);
      }
    }
    int_sends_.push_back({r, tie_ids_out_[r]});
  }
  std::vector<std::size_t>& expected = tie_cursor_;
  expected.assign(static_cast<std::size_t>(ranks_), 0);
  for (const TiedToken& token : chunk.tied) {
    list_cover(plan_.present()[token.present].part);
    gather_token_scores(chunk, token.present, token.token);
    const float threshold = chunk.cut_out[cut_of(token, 0)].threshold;
    const float* scores = token_scores_.data();
    for (std::size_t i = 0; i < token_ranks_.size(); ++i) {
      for (int64_t j = 0; j < token_sizes_[i]; ++j) {
        expected[token_ranks_[i]] += router::is_tied(*scores++, threshold);
      }
    }
  }
  for (int r = 0; r < ranks_; ++r) {
    tie_ids_in_[r].resize(expected[r]);
    int_recvs_.push_back({r, tie_ids_in_[r]});
  }
  comm_.exchange<int32_t>(int_sends_, int_recvs_, kTagTieIds).wait();

  // In stream order: by rank, parts ascending, tokens ascending; so is chunk.tied for each rank.
  std::fill(expected.begin(), expected.end(), std::size_t{0});
  for (int r = 0; r < ranks_; ++r) ties_out_[r].clear();
  for (const TiedToken& token : chunk.tied) {
    const auto candidates =
        static_cast<std::size_t>(list_cover(plan_.present()[token.present].part));
    const std::size_t cover = token_ranks_.size();
    gather_token_scores(chunk, token.present, token.token);
    const float threshold = chunk.cut_out[cut_of(token, 0)].threshold;
    std::size_t at = 0;
    for (std::size_t i = 0; i < cover; ++i) {
      for (int64_t j = 0; j < token_sizes_[i]; ++j, ++at) {
        if (!router::is_tied(token_scores_[at], threshold)) continue;
        token_ids_[at] = tie_ids_in_[token_ranks_[i]][expected[token_ranks_[i]]++];
      }
    }
    router::cut_top_k({token_scores_.data(), candidates}, token_sizes_, config_.active,
                      {token_cuts_.data(), cover}, {token_taken_.data(), cover}, cut_workspace_);
    router::resolve_ties({token_scores_.data(), candidates}, {token_ids_.data(), candidates},
                         token_sizes_, {token_cuts_.data(), cover}, {token_taken_.data(), cover},
                         cut_workspace_);
    for (std::size_t i = 0; i < cover; ++i) {
      const int64_t segment = segment_of_[token_ranks_[i] * present + token.present];
      taken_[plan_.home_segments()[segment].stream_begin + token.token] = token_taken_[i];
      ties_out_[token_ranks_[i]].push_back(token_cuts_[i].ties);
    }
  }
  int_sends_.clear();
  int_recvs_.clear();
  for (int r = 0; r < ranks_; ++r) {
    int_sends_.push_back({r, ties_out_[r]});
    int_recvs_.push_back({r, ties_in_[r]});
  }
  comm_.exchange<int32_t>(int_sends_, int_recvs_, kTagTies).wait();
  for (int r = 0; r < ranks_; ++r) {
    auto next = ties_in_[r].begin();
    if (next == ties_in_[r].end()) continue;
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        if (cuts_[t].ties == kTiesOpen) cuts_[t].ties = *next++;
      }
    }
  }
}

// Candidate side: scores become gates, pairs that were not selected go; the arrays close up in
// place.
void MoeLayer::apply_cuts(int64_t c) {
  const PhaseClock::Scope time(clock_, Phase::select);
  Chunk& chunk = chunks_[c];
  const GroupRange range = plan_.group_range(c);
  int64_t end = pair_offset_[range.token_begin];
  chunk.pair_begin = end;
  for (int64_t i = range.group_begin; i < range.group_end && !home_selects(); ++i) {
    const TokenGroup& group = plan_.groups()[i];
    const std::span<const int32_t> rows = routes_.resident(group.part);
    const int64_t keep = kept(std::ssize(rows));
    for (int64_t t = 0; t < group.count; ++t) {
      const int64_t token = group.token_begin + t;
      const int64_t at = group_pairs_[i] + t * keep;
      const int64_t taken =
          router::apply_cut(cuts_[token], position_.data() + at, gate_.data() + at, keep,
                            position_.data() + end, gate_.data() + end);
      for (int64_t p = end; p < end + taken; ++p) pair_expert_[p] = rows[position_[p]];
      end += taken;
      pair_offset_[token + 1] = end;
    }
  }
  chunk.pair_end = pair_offset_[range.token_end];
  if (batch_.training) {
    usage_.add(pair_expert_.data() + chunk.pair_begin, gate_.data() + chunk.pair_begin,
               chunk.pair_end - chunk.pair_begin);
  }
}

}  // namespace airmoe::scheduler
