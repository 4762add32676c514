// Forward of the MoE layer after routing. A micro-batch moves in chunks: while one chunk is scored
// or its experts run, the tokens of the next, the cuts and the results of those before are under
// way.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "comm/base/exact_sum.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/active_blocks.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

namespace {

void copy_rows(const float* from, float* to, int64_t rows, int64_t width) {
  std::memcpy(to, from, static_cast<std::size_t>(rows * width) * sizeof(float));
}

}  // namespace

void MoeLayer::forward(ConstMatrix hidden, Matrix out) {
  home_tokens_ = hidden.rows;
  route(hidden);
  usage_.begin_micro_batch();
  if (home_selects()) select_at_home(hidden);
  post_dispatch(hidden);
  begin_select();
  const int64_t chunks = plan_.chunks();
  for (int64_t c = 0; c < chunks + 2; ++c) {
    if (c < chunks) {
      unpack_tokens(c);
      score(c);
      post_scores(c);
    }
    if (c >= 1 && c - 1 < chunks) {
      cut_at_home(c - 1);
      post_cuts(c - 1);
    }
    if (c >= 2) {
      receive_cuts(c - 2);
      resolve_ties(c - 2);
      apply_cuts(c - 2);
      fetch_experts(c - 2);
      run_experts(c - 2);
      post_return(c - 2, dim_, false, partial_, kTagCombine);
    }
  }
  share_usage();
  finish_forward(out);
}

// All chunks' tokens start at once; each is waited for when its turn comes.
void MoeLayer::post_dispatch(ConstMatrix hidden) {
  const PhaseClock::Scope time(clock_, Phase::dispatch);
  const comm::ScopedPhase phase(comm_, phase_name("dispatch", "eval_dispatch"));
  hidden_home_.ensure(home_tokens_ * dim_);
  copy_rows(hidden.data, hidden_home_.data(), home_tokens_, dim_);
  if (home_selects()) {
    post_selected(hidden);
    return;
  }
  plan_.build(routes_);
  chunks_.resize(static_cast<std::size_t>(plan_.chunks()));
  const int64_t width = dim_ + (jittered() ? 1 : 0);
  const std::span<const int32_t> tokens = plan_.home_tokens();
  for (int64_t c = 0; c < plan_.chunks(); ++c) {
    Chunk& chunk = chunks_[c];
    int64_t sent = 0, received = 0;
    for (int r = 0; r < ranks_; ++r) {
      sent += plan_.home_range(r, c).tokens();
      received += plan_.candidate_range(r, c).tokens();
    }
    chunk.row_out.ensure(sent * width);
    chunk.row_in.ensure(received * width);
    float_sends_.clear();
    float_recvs_.clear();
    float* out = chunk.row_out.data();
    float* in = chunk.row_in.data();
    for (int r = 0; r < ranks_; ++r) {
      const StreamRange range = plan_.home_range(r, c);
      const std::size_t size = static_cast<std::size_t>(range.tokens() * width);
      float_sends_.push_back({r, {out, size}});
      for (int64_t i = range.token_begin; i < range.token_end; ++i) {
        const int32_t token = tokens[i];
        copy_rows(hidden.row(token), out, 1, dim_);
        if (width > dim_) {
          const auto index = static_cast<int32_t>(batch_.range.first + token);
          std::memcpy(out + dim_, &index, sizeof(index));
        }
        out += width;
      }
      const auto arriving = static_cast<std::size_t>(plan_.candidate_range(r, c).tokens() * width);
      float_recvs_.push_back({r, {in, arriving}});
      in += arriving;
    }
    chunk.rows.start(exchange_clock_,
                     comm_.exchange<float>(float_sends_, float_recvs_, kTagDispatch));
  }
}

void MoeLayer::unpack_tokens(int64_t c) {
  const PhaseClock::Scope time(clock_, Phase::dispatch);
  const comm::ScopedPhase phase(comm_, phase_name("dispatch", "eval_dispatch"));
  chunks_[c].rows.wait();
  hidden_.ensure(plan_.tokens() * dim_);
  if (home_selects()) {
    unpack_selected(c);
    return;
  }
  const int64_t width = dim_ + (jittered() ? 1 : 0);
  token_index_.ensure(plan_.tokens());
  const float* in = chunks_[c].row_in.data();
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      if (width == dim_) {
        copy_rows(in, hidden_.data() + segment.token_begin * dim_, segment.count, dim_);
        in += segment.count * dim_;
        continue;
      }
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        copy_rows(in, hidden_.data() + t * dim_, 1, dim_);
        std::memcpy(token_index_.data() + t, in + dim_, sizeof(int32_t));
        in += width;
      }
    }
  }
}

void MoeLayer::score(int64_t c) {
  if (home_selects()) return;
  const std::vector<TokenGroup>& groups = plan_.groups();
  const GroupRange range = plan_.group_range(c);
  const RandomStream noise(seed_, Purpose::jitter_score, batch_.step, batch_.index,
                           static_cast<uint32_t>(layer_));
  for (int64_t i = range.group_begin; i < range.group_end; ++i) {
    const TokenGroup& group = groups[i];
    const auto codeword = static_cast<uint32_t>(routes_.codeword(group.part));
    const std::span<const int32_t> rows = routes_.resident(group.part);
    const int64_t candidates = std::ssize(rows);
    const int64_t keep = kept(candidates);
    const ConstPanel panel{unit_.data(), rows.data(), candidates, dim_, dim_};
    tile_.ensure(candidates * tile_ld(kBlockTokens));
    for (int64_t begin = 0; begin < group.count; begin += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, group.count - begin);
      const int64_t first = group.token_begin + begin;
      {
        const PhaseClock::Scope time(clock_, Phase::score);
        const ConstMatrix block(hidden_.data() + first * dim_, count, dim_);
        panel_scores(panel, block, tile_.data(), panel_);
        // Keyed by (token of the micro-batch, expert, codeword).
        for (int64_t j = 0; jittered() && j < candidates; ++j) {
          add_jitter(tile_.data() + j * tile_ld(count), token_index_.data() + first, count,
                     config_.jitter, noise, static_cast<uint32_t>(residency_.expert(rows[j])),
                     codeword);
        }
      }
      const PhaseClock::Scope time(clock_, Phase::select);
      const int64_t at = group_pairs_[i] + begin * keep;
      router::select_top_k(tile_.data(), candidates, count, config_.active, position_.data() + at,
                           gate_.data() + at);
    }
    poll();
  }
}

// The whole micro-batch's shape, not this rank's, so that the choice does not depend on the rank
// count.
experts::PathShape MoeLayer::path_shape() const {
  experts::PathShape shape;
  shape.tokens = static_cast<double>(batch_.range.global_tokens);
  shape.tokens_per_codeword = shape.tokens / static_cast<double>(config_.codewords);
  shape.candidates = static_cast<double>(config_.shortlist);
  shape.experts = static_cast<double>(config_.experts);
  shape.active = static_cast<double>(config_.active);
  shape.expert_dim = config_.expert_dim;
  shape.dim = dim_;
  shape.gated = config_.expert_activation == ExpertActivation::swiglu;
  return shape;
}

void MoeLayer::run_experts(int64_t c) {
  const PhaseClock::Scope time(clock_, Phase::experts);
  const experts::ExpertTable experts_here = table();
  Chunk& chunk = chunks_[c];
  const GroupRange range = plan_.group_range(c);
  chunk.saved.ensure(
      batch_.training ? (chunk.pair_end - chunk.pair_begin) * experts_here.saved_per_pair() : 0);
  // Indexed by pairs of the micro-batch; the chunk's come first in its own array.
  float* saved = batch_.training
                     ? chunk.saved.data() - chunk.pair_begin * experts_here.saved_per_pair()
                     : nullptr;
  partial_.ensure(plan_.tokens() * dim_);
  std::fill_n(partial_.data() + range.token_begin * dim_,
              (range.token_end - range.token_begin) * dim_, 0.0);

  path_taken_ = experts::choose_path(path_, path_shape());
  if (path_taken_ == experts::Path::grouped) {
    const int64_t first = range.token_begin;
    const int64_t tokens = range.token_end - first;
    const SelectionView by_expert{tokens, pair_offset_.data() + first, pair_expert_.data(),
                                  gate_.data()};
    chunk.grouping.build(by_expert, residency_.rows());
    experts::forward_grouped(experts_here, chunk.grouping,
                             {hidden_.data() + first * dim_, tokens, dim_}, by_expert, saved,
                             {partial_.data() + first * dim_, tokens, dim_}, grouped_);
    poll();
    return;
  }
  block_hidden_.ensure(kBlockTokens * dim_);
  block_sum_.ensure(kBlockTokens * dim_);
  for (int64_t i = range.group_begin; i < range.group_end; ++i) {
    const TokenGroup& group = plan_.groups()[i];
    const std::span<const int32_t> rows = routes_.resident(group.part);
    for_each_active_block(group, [&](int64_t count) {
      const int64_t first = block_token_[0];
      const bool contiguous = block_token_[count - 1] - first + 1 == count;
      const float* block_hidden = hidden_.data() + first * dim_;
      MatrixView<double> y(partial_.data() + first * dim_, count, dim_);
      if (!contiguous) {
        for (int64_t t = 0; t < count; ++t) {
          copy_rows(hidden_.data() + block_token_[t] * dim_, block_hidden_.data() + t * dim_, 1,
                    dim_);
        }
        block_hidden = block_hidden_.data();
        std::fill_n(block_sum_.data(), count * dim_, 0.0);
        y = MatrixView<double>(block_sum_.data(), count, dim_);
      }
      const experts::DenseBlock block{
          {block_hidden, count, dim_},
          rows.data(),
          std::ssize(rows),
          {count, block_offset_.data(), position_.data(), gate_.data()}};
      experts::forward_dense(experts_here, block, saved, y, dense_);
      for (int64_t t = 0; !contiguous && t < count; ++t) {
        std::copy_n(y.row(t), dim_, partial_.data() + block_token_[t] * dim_);
      }
    });
    poll();
  }
}

// Selections of each expert over all ranks, and for the balance loss each token's share of
// sum of gate * d(balance) / d(gate).
void MoeLayer::share_usage() {
  if (!batch_.training) return;
  if (residency_shared()) {
    const comm::ScopedPhase phase(comm_, "usage");
    residency_.share_counts(usage_.counts(), usage_.touched());
  }
  const float slope = balance_slope(config_, batch_);
  if (slope == 0.0f) return;
  counters_.balance_loss += static_cast<double>(slope) * usage_.count_gate_product();
  share_.ensure(plan_.tokens());
  for (int64_t t = 0; t < plan_.tokens(); ++t) {
    double sum = 0.0;
    for (int64_t p = pair_offset_[t]; p < pair_offset_[t + 1]; ++p) {
      sum += round_to_quantum(static_cast<double>(gate_[p]) * usage_.count(pair_expert_[p]),
                              rounding_constant(kOutputQuantum));
    }
    share_[t] = sum;
  }
}

void MoeLayer::finish_forward(Matrix out) {
  const PhaseClock::Scope time(clock_, Phase::combine);
  const comm::ScopedPhase phase(comm_, phase_name("combine", "eval_combine"));
  total_.ensure(home_tokens_ * dim_);
  total_.fill(0.0);
  for (int64_t c = 0; c < plan_.chunks(); ++c) {
    finish_return(c, dim_, false, total_);
  }
  const float slope = balance_slope(config_, batch_);
  balance_.ensure(home_tokens_);
  balance_.fill(0.0);
  if (slope != 0.0f) {
    for (int64_t c = 0; c < plan_.chunks(); ++c) post_return(c, 1, false, share_, kTagBalance);
    for (int64_t c = 0; c < plan_.chunks(); ++c) finish_return(c, 1, false, balance_);
  }

  output_.ensure(home_tokens_ * dim_);
  balance_dot_.ensure(home_tokens_);
  for (int64_t t = 0; t < home_tokens_; ++t) {
    const double* total = total_.data() + t * dim_;
    float* y = out.row(t);
    for (int64_t k = 0; k < dim_; ++k) y[k] = static_cast<float>(total[k]);
    copy_rows(y, output_.data() + t * dim_, 1, dim_);
    balance_dot_[t] = slope * static_cast<float>(balance_[t]);
  }
  if (!batch_.training) return;
  counters_.tokens += home_tokens_;
  for (const HomeSegment& segment : plan_.home_segments()) {
    counters_.candidate_ranks += segment.count;
    for (int64_t j = 0; j < segment.count; ++j) {
      counters_.selected_ranks += taken_[segment.stream_begin + j] > 0;
    }
  }
}

}  // namespace airmoe::scheduler
