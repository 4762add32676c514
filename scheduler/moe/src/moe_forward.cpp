// Forward of the MoE layer after routing: dispatch, score, select, experts, combine.

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
  dispatch(hidden);
  score();
  select();
  run_experts();
  combine(out);
}

void MoeLayer::dispatch(ConstMatrix hidden) {
  const PhaseClock::Scope time(clock_, Phase::dispatch);
  const comm::ScopedPhase phase(comm_, phase_name("dispatch", "eval_dispatch"));
  plan_.build(order_, shortlists_);

  sorted_.ensure(home_tokens_ * dim_);
  for (int64_t i = 0; i < home_tokens_; ++i) {
    copy_rows(hidden.row(order_.token[i]), sorted_.data() + i * dim_, 1, dim_);
  }
  // A rank that takes every token gets the sorted array itself; only partial streams are packed.
  const std::vector<HomeSegment>& segments = plan_.home_segments();
  int64_t to_pack = 0;
  for (int r = 0; r < ranks_; ++r) {
    const int64_t tokens = plan_.home_stream_begin(r + 1) - plan_.home_stream_begin(r);
    if (tokens < home_tokens_) to_pack += tokens;
  }
  packed_.ensure(to_pack * dim_);
  float_sends_.clear();
  float_recvs_.clear();
  float* pack = packed_.data();
  row_in_.ensure(plan_.tokens() * dim_);
  for (int r = 0; r < ranks_; ++r) {
    const int64_t tokens = plan_.home_stream_begin(r + 1) - plan_.home_stream_begin(r);
    const auto size = static_cast<std::size_t>(tokens * dim_);
    if (tokens == home_tokens_) {
      float_sends_.push_back({r, {sorted_.data(), size}});
    } else if (tokens > 0) {
      float_sends_.push_back({r, {pack, size}});
      for (int64_t s = plan_.home_segments_begin(r); s < plan_.home_segments_begin(r + 1); ++s) {
        copy_rows(sorted_.data() + segments[s].order_begin * dim_, pack, segments[s].count, dim_);
        pack += segments[s].count * dim_;
      }
    }
    const int64_t begin = plan_.candidate_stream_begin(r);
    const int64_t arriving = plan_.candidate_stream_begin(r + 1) - begin;
    float_recvs_.push_back(
        {r, {row_in_.data() + begin * dim_, static_cast<std::size_t>(arriving * dim_)}});
  }
  comm_.exchange<float>(float_sends_, float_recvs_, kTagDispatch).wait();

  hidden_.ensure(plan_.tokens() * dim_);
  for (const CandidateSegment& s : plan_.candidate_segments()) {
    copy_rows(row_in_.data() + s.stream_begin * dim_, hidden_.data() + s.token_begin * dim_,
              s.count, dim_);
  }
}

void MoeLayer::score() {
  const std::vector<TokenGroup>& groups = plan_.groups();
  group_pairs_.ensure(std::ssize(groups) + 1);
  int64_t pairs = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    group_pairs_[i] = pairs;
    pairs += groups[i].count * kept(shortlists_.candidates(groups[i].codeword, rank_));
  }
  group_pairs_[std::ssize(groups)] = pairs;
  position_.ensure(pairs);
  gate_.ensure(pairs);
  const bool jitter = batch_.training && config_.jitter > 0.0f;
  const RandomStream noise(seed_, Purpose::jitter_score, batch_.step, batch_.index,
                           static_cast<uint32_t>(layer_));
  noise_index_.ensure(kBlockTokens);

  for (std::size_t i = 0; i < groups.size(); ++i) {
    const TokenGroup& group = groups[i];
    const std::span<const int32_t> rows = shortlists_.resident(group.codeword);
    const int64_t candidates = std::ssize(rows);
    const int64_t keep = kept(candidates);
    const ConstPanel panel{unit_.data(), rows.data(), candidates, dim_, dim_};
    tile_.ensure(candidates * tile_ld(kBlockTokens));
    for (int64_t begin = 0; begin < group.count; begin += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, group.count - begin);
      {
        const PhaseClock::Scope time(clock_, Phase::score);
        const ConstMatrix block(hidden_.data() + (group.token_begin + begin) * dim_, count, dim_);
        panel_scores(panel, block, tile_.data(), panel_);
        if (jitter) {
          // Keyed by (token's place among the codeword's tokens of all ranks, expert, codeword).
          for (int64_t t = 0; t < count; ++t) noise_index_[t] = static_cast<int32_t>(begin + t);
          for (int64_t c = 0; c < candidates; ++c) {
            add_jitter(tile_.data() + c * tile_ld(count), noise_index_.data(), count,
                       config_.jitter, noise, static_cast<uint32_t>(first_expert_ + rows[c]),
                       static_cast<uint32_t>(group.codeword));
          }
        }
      }
      const PhaseClock::Scope time(clock_, Phase::select);
      const int64_t at = group_pairs_[static_cast<int64_t>(i)] + begin * keep;
      router::select_top_k(tile_.data(), candidates, count, config_.active, position_.data() + at,
                           gate_.data() + at);
    }
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

void MoeLayer::run_experts() {
  const PhaseClock::Scope time(clock_, Phase::experts);
  const experts::ExpertTable experts_here = table();
  const int64_t pairs = pair_offset_[plan_.tokens()];
  saved_.ensure(batch_.training ? pairs * experts_here.saved_per_pair() : 0);
  float* saved = batch_.training ? saved_.data() : nullptr;
  const int64_t width = return_width();
  partial_.ensure(plan_.tokens() * width);
  partial_.fill(0.0);

  path_taken_ = experts::choose_path(path_, path_shape());
  if (path_taken_ == experts::Path::grouped) {
    const SelectionView by_expert{plan_.tokens(), pair_offset_.data(), pair_expert_.data(),
                                  gate_.data()};
    grouping_.build(by_expert, local_experts_);
    experts::forward_grouped(experts_here, grouping_, {hidden_.data(), plan_.tokens(), dim_},
                             by_expert, saved, {partial_.data(), plan_.tokens(), dim_, width},
                             grouped_);
    return;
  }
  block_hidden_.ensure(kBlockTokens * dim_);
  block_sum_.ensure(kBlockTokens * dim_);
  for (const TokenGroup& group : plan_.groups()) {
    const std::span<const int32_t> rows = shortlists_.resident(group.codeword);
    for_each_active_block(group, [&](int64_t count) {
      const int64_t first = block_token_[0];
      const bool contiguous = block_token_[count - 1] - first + 1 == count;
      const float* block_hidden = hidden_.data() + first * dim_;
      MatrixView<double> y(partial_.data() + first * width, count, dim_, width);
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
        std::copy_n(y.row(t), dim_, partial_.data() + block_token_[t] * width);
      }
    });
  }
}

// A row of combine: y, and with a balance loss the token's share of sum of gate * d(balance) /
// d(gate).
int64_t MoeLayer::return_width() const {
  return dim_ + (balance_slope() != 0.0f ? 1 : 0);
}

void MoeLayer::combine(Matrix out) {
  const PhaseClock::Scope time(clock_, Phase::combine);
  const comm::ScopedPhase phase(comm_, phase_name("combine", "eval_combine"));
  const float slope = balance_slope();
  const int64_t width = return_width();
  if (slope != 0.0f) {
    for (int64_t t = 0; t < plan_.tokens(); ++t) {
      double sum = 0.0;
      for (int64_t p = pair_offset_[t]; p < pair_offset_[t + 1]; ++p) {
        sum += round_to_quantum(static_cast<double>(gate_[p]) * usage_.count(pair_expert_[p]),
                                rounding_constant(kOutputQuantum));
      }
      partial_[t * width + dim_] = sum;
    }
    counters_.balance_loss += static_cast<double>(slope) * usage_.count_gate_product();
  }
  return_rows(partial_, width, kTagCombine);

  output_.ensure(home_tokens_ * dim_);
  balance_dot_.ensure(home_tokens_);
  for (int64_t t = 0; t < home_tokens_; ++t) {
    const double* total = total_.data() + t * width;
    float* y = out.row(t);
    for (int64_t k = 0; k < dim_; ++k) y[k] = static_cast<float>(total[k]);
    copy_rows(y, output_.data() + t * dim_, 1, dim_);
    balance_dot_[t] = slope != 0.0f ? slope * static_cast<float>(total[dim_]) : 0.0f;
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
